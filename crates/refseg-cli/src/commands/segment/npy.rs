//! NumPy's file format, as far as three-dimensional f32 needs it.
//!
//! Specification: `numpy.lib.format`, version 1.0.

use refseg::Segmentation;

/// Probabilities of all phrases, `[phrases, side, side]`.
pub(super) fn probabilities(results: &[Segmentation]) -> Vec<u8> {
    let side = results.first().map_or(0, |result| result.side);
    let values = results.iter().flat_map(|result| &result.probabilities);
    encode([results.len(), side, side], values)
}

fn encode<'a>([n, h, w]: [usize; 3], values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    let fields = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {h}, {w}), }}");
    // Magic, the header's length and the header fill a multiple of 64 bytes,
    // with spaces and a line break at the end.
    let whole = (MAGIC.len() + 2 + fields.len() + 1).next_multiple_of(64);
    let header = whole - MAGIC.len() - 2;
    let mut bytes = Vec::with_capacity(whole + 4 * n * h * w);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(header as u16).to_le_bytes());
    bytes.extend_from_slice(format!("{fields:<0$}\n", header - 1).as_bytes());
    bytes.extend(values.flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_numpys() {
        let bytes = encode([1, 1, 2], [0.5f32, 1.0].iter());
        assert_eq!(bytes.len(), 128 + 8);
        assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        let header = std::str::from_utf8(&bytes[10..128]).expect("ASCII");
        assert!(
            header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2), }")
        );
        assert!(header.ends_with(" \n"));
        assert_eq!(bytes[128..], [0, 0, 0, 0x3f, 0, 0, 0x80, 0x3f]);
    }
}
