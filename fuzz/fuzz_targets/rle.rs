//! Any text, taken for a COCO run-length code: an error or a mask, and masks survive the round
//! trip. Input: height and width (two bytes each, low byte first), then the code.

#![no_main]

use libfuzzer_sys::fuzz_target;
use refseg::{Mask, mask::Rle};

/// Sides stay below this, zero included; a mask holds a byte for each pixel.
const SIDES: usize = 512;

fuzz_target!(|data: &[u8]| {
    let Some((&[h0, h1, w0, w1], code)) = data.split_first_chunk::<4>() else {
        return;
    };
    let side = |bytes| usize::from(u16::from_le_bytes(bytes)) % SIDES;
    let (height, width) = (side([h0, h1]), side([w0, w1]));

    if let Ok(counts) = std::str::from_utf8(code) {
        let rle = Rle {
            size: [height, width],
            counts: counts.to_owned(),
        };
        if let Ok(mask) = Mask::from_rle(&rle) {
            assert_eq!((mask.height(), mask.width()), (height, width));
            check_round_trip(&mask);
        }
    }

    // The same bytes once more, as the pixels themselves.
    if !code.is_empty() {
        let bit = |pixel: usize| code[pixel / 8 % code.len()] >> (pixel % 8) & 1 == 1;
        let bits = (0..height * width).map(bit).collect();
        if let Ok(mask) = Mask::from_bits(height, width, bits) {
            check_round_trip(&mask);
        }
    }
});

fn check_round_trip(mask: &Mask) {
    let again = Mask::from_rle(&mask.to_rle()).expect("our own code is well formed");
    assert!(again.bits() == mask.bits(), "{mask:?} changed on the way");
    assert_eq!(
        mask.bounds().is_none(),
        mask.area() == 0,
        "a box means foreground"
    );
}
