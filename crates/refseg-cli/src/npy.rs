//! NumPy's file format, as far as arrays of floats need it.
//!
//! Specification: `numpy.lib.format`, versions 1.0 to 3.0.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, bail};

const MAGIC: &[u8] = b"\x93NUMPY";

/// An array, row-major.
#[derive(Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The bytes of a file of f32.
pub(crate) fn encode<'a>([n, h, w]: [usize; 3], values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
    let fields = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {h}, {w}), }}");
    // Magic, version, the header's length and the header fill a multiple of 64
    // bytes, with spaces and a line break at the end.
    let start = MAGIC.len() + 4;
    let whole = (start + fields.len() + 1).next_multiple_of(64);
    let header = whole - start;
    let mut bytes = Vec::with_capacity(whole + 4 * n * h * w);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(header as u16).to_le_bytes());
    bytes.extend_from_slice(format!("{fields:<0$}\n", header - 1).as_bytes());
    bytes.extend(values.flat_map(|value| value.to_le_bytes()));
    bytes
}

/// Most that is read of a file: far more than any mask input has.
const MOST_BYTES: u64 = 1 << 30;

/// Reads a file of little-endian f32 or f64.
///
/// # Errors
/// If the file cannot be read, is no such array, or is cut off.
pub(crate) fn read(path: &Path) -> Result<Array> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes))
        .with_context(|| format!("`{}`: cannot read the array", path.display()))?;
    decode(&bytes).with_context(|| format!("`{}`: cannot be read as an array", path.display()))
}

fn decode(bytes: &[u8]) -> Result<Array> {
    let Some(([version, _], rest)) = bytes
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split_first_chunk())
    else {
        bail!("it does not begin as NumPy's files (.npy) do");
    };
    // From version 2 on the length of the header has four bytes.
    let header = match version {
        1 => rest
            .split_first_chunk()
            .map(|(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest)),
        _ => rest
            .split_first_chunk()
            .map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest)),
    };
    let Some((header, data)) = header.and_then(|(length, rest)| rest.split_at_checked(length))
    else {
        bail!("it ends within its header");
    };
    let header = String::from_utf8_lossy(header);
    let field = |name: &str| {
        let after = header.split_once(&format!("'{name}':"))?.1;
        Some(after.trim_start())
    };
    if field("fortran_order").is_none_or(|value| !value.starts_with("False")) {
        bail!("it is in Fortran's order, expected C's: `numpy.ascontiguousarray` makes it so");
    }
    let shape = field("shape").and_then(parse_shape);
    let count = shape.as_ref().and_then(|shape| {
        let mut extents = shape.iter();
        extents.try_fold(1usize, |count, &extent| count.checked_mul(extent))
    });
    let (Some(shape), Some(count)) = (shape, count) else {
        bail!("its header has no `shape`");
    };
    let descr = field("descr").unwrap_or_default();
    let (size, values): (usize, Vec<f32>) = if descr.starts_with("'<f4'") {
        let values = data.as_chunks().0.iter();
        (4, values.map(|&b| f32::from_le_bytes(b)).collect())
    } else if descr.starts_with("'<f8'") {
        let values = data.as_chunks().0.iter();
        (8, values.map(|&b| f64::from_le_bytes(b) as f32).collect())
    } else {
        let found = descr.split(',').next().unwrap_or_default();
        bail!("its values are {found}, expected '<f4' (float32) or '<f8' (float64)");
    };
    if count.checked_mul(size) != Some(data.len()) {
        bail!(
            "it has {} bytes of values, but {shape:?} needs {count} values of {size} bytes",
            data.len()
        );
    }
    Ok(Array { shape, values })
}

/// The numbers of a tuple such as `(1, 256, 256)` or `(7,)`.
fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let inside = text.strip_prefix('(')?.split_once(')')?.0;
    let numbers = inside.split(',').map(str::trim);
    numbers
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().ok())
        .collect()
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

    #[test]
    fn what_is_written_can_be_read() {
        let values = [0.5, -1.0, 3.25, f32::MIN_POSITIVE, 1e9, 0.0];
        let array = decode(&encode([1, 3, 2], values.iter())).expect("our own file");
        assert_eq!(array.shape, [1, 3, 2]);
        assert_eq!(array.values, values);
    }

    fn file(version: u8, fields: &str, data: &[u8]) -> Vec<u8> {
        let length = match version {
            1 => (fields.len() as u16).to_le_bytes().to_vec(),
            _ => (fields.len() as u32).to_le_bytes().to_vec(),
        };
        [MAGIC, &[version, 0], &length, fields.as_bytes(), data].concat()
    }

    #[test]
    fn doubles_and_later_versions_are_read() {
        let fields = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n";
        let data = [1.5f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat();
        for version in [1, 2, 3] {
            let array = decode(&file(version, fields, &data)).expect("an array");
            assert_eq!((array.shape, array.values), (vec![2], vec![1.5, -2.0]));
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let fields = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n")
        };
        let good = fields("<f4", "False", "(1,)");
        let huge = "(4611686018427387904, 4)";
        for (bytes, message) in [
            (b"PK\x03\x04".to_vec(), "does not begin"),
            (MAGIC.to_vec(), "does not begin"),
            (
                file(1, &good, &[0; 4])[..30].to_vec(),
                "ends within its header",
            ),
            (
                file(1, &good, &[0; 3]),
                "3 bytes of values, but [1] needs 1 values of 4 bytes",
            ),
            (file(1, &good, &[0; 8]), "8 bytes of values"),
            (
                file(1, &fields("<i8", "False", "(1,)"), &[0; 8]),
                "are '<i8', expected '<f4'",
            ),
            (
                file(1, &fields("<f4", "True", "(1,)"), &[0; 4]),
                "Fortran's order",
            ),
            (file(1, &fields("<f4", "False", "(-1,)"), &[]), "no `shape`"),
            (file(1, &fields("<f4", "False", huge), &[]), "no `shape`"),
            (file(1, "{}", &[]), "Fortran's order"),
        ] {
            let error = decode(&bytes).expect_err(message);
            assert!(error.to_string().contains(message), "{message}: {error}");
        }
    }
}
