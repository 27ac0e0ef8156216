//! Any bytes, taken for a picture: an error or a picture within the limit, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use refseg::{Image, image::DecodeOptions};

/// Small, so that a header that claims a large picture does not make a slow input.
const MAX_PIXELS: u64 = 1 << 18;

fuzz_target!(|data: &[u8]| {
    let decode = |apply_orientation| {
        let options = DecodeOptions {
            apply_orientation,
            max_pixels: MAX_PIXELS,
        };
        Image::decode(data, "fuzzed", &options)
    };
    let (upright, stored) = (decode(true), decode(false));
    assert_eq!(
        upright.is_ok(),
        stored.is_ok(),
        "EXIF decides whether a picture can be read"
    );
    for image in [upright, stored].into_iter().flatten() {
        let (width, height) = (u64::from(image.width()), u64::from(image.height()));
        assert!((1..=MAX_PIXELS).contains(&(width * height)));
        assert_eq!(image.pixels().len() as u64, 3 * width * height);
        let small = image.resize(7, 5);
        assert_eq!(small.normalised().len(), 3 * 7 * 5);
    }
});
