//! Reading pictures: every kind agrees with Pillow, and nothing that is wrong with a
//! file gets further than an error.
//!
//! `fixtures/images/README.md` says where the files come from.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use refseg::image::{DecodeOptions, Image, ImageError};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/images")
        .join(name)
}

fn decode(bytes: &[u8]) -> std::result::Result<Image, ImageError> {
    Image::decode(bytes, "test", &DecodeOptions::default())
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The deterministic stream of the specification's vectors, as 64-bit words.
fn stream(name: &str) -> impl Iterator<Item = u64> {
    let seed = fnv(name.as_bytes());
    (1u64..).map(move |index| {
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

fn drawn(name: &str, width: u32, height: u32) -> Result<Image> {
    let bytes = (width * height * 3) as usize;
    let pixels = stream(name).take(bytes).map(|word| (word >> 56) as u8);
    Ok(Image::from_rgb(width, height, pixels.collect())?)
}

fn rgb(image: &Image, row: u32, column: u32) -> &[u8] {
    let at = ((row * image.width() + column) * 3) as usize;
    &image.pixels()[at..at + 3]
}

/// Vectors from the specification.
#[test]
fn resize_matches_pillow() -> Result {
    struct Case {
        name: &'static str,
        size: (u32, u32),
        first: [u8; 3],
        sum: u64,
        fnv: u64,
        out: [[u8; 3]; 3],
    }
    let cases = [
        Case {
            name: "img.a",
            size: (640, 427),
            first: [38, 191, 82],
            sum: 76_759_855,
            fnv: 0x875d_d7f8_5fc3_4bbc,
            out: [[43, 131, 87], [131, 144, 138], [83, 233, 148]],
        },
        Case {
            name: "img.b",
            size: (37, 23),
            first: [29, 213, 116],
            sum: 76_319_964,
            fnv: 0x81b7_30bc_a641_1f2f,
            out: [[0, 255, 98], [186, 159, 123], [51, 124, 247]],
        },
        Case {
            name: "img.c",
            size: (448, 300),
            first: [196, 19, 42],
            sum: 76_867_318,
            fnv: 0xcc88_ef13_051e_e4ed,
            out: [[204, 7, 32], [75, 67, 30], [5, 75, 240]],
        },
    ];
    for case in cases {
        let image = drawn(case.name, case.size.0, case.size.1)?;
        assert_eq!(rgb(&image, 0, 0), case.first, "{}", case.name);
        let resized = image.resize(448, 448);
        assert_eq!(rgb(&resized, 0, 0), case.out[0], "{}", case.name);
        assert_eq!(rgb(&resized, 100, 200), case.out[1], "{}", case.name);
        assert_eq!(rgb(&resized, 447, 447), case.out[2], "{}", case.name);
        let sum: u64 = resized.pixels().iter().map(|&level| u64::from(level)).sum();
        assert_eq!(sum, case.sum, "{}", case.name);
        assert_eq!(fnv(resized.pixels()), case.fnv, "{}", case.name);
    }
    Ok(())
}

/// Computed by Pillow 13.0.0, filter `BILINEAR`.
#[test]
fn bilinear_resize_matches_pillow() -> Result {
    let pictures = [drawn("img.a", 640, 427)?, drawn("img.b", 37, 23)?];
    for (picture, width, height, expected) in [
        (0, 1024, 683, 0x2628_2cb7_018c_e7be),
        (0, 512, 342, 0x5cb5_fd1c_5682_398a),
        (0, 97, 500, 0x2364_790d_f371_d035),
        (1, 1024, 637, 0x1597_e71c_0167_6740),
        (1, 9, 40, 0x87d7_370f_3ce9_0653),
    ] {
        let resized = pictures[picture].resize_bilinear(width, height);
        assert_eq!(fnv(resized.pixels()), expected, "{width}x{height}");
    }
    Ok(())
}

/// Where the height shrinks by more than twice as many pixels as the width, the vertical pass comes
/// first: the first of these sizes. Computed by Pillow 13.0.0.
#[test]
fn tall_pictures_are_resized_as_pillow_13_does() -> Result {
    let (width, height) = (60, 140);
    let level = |at: u32| {
        let (x, y, c) = (at / 3 % width, at / 3 / width, at % 3);
        ((x * x * 7 + y * y * 13 + x * y * 5 + c * 37) % 256) as u8
    };
    let image = Image::from_rgb(width, height, (0..width * height * 3).map(level).collect())?;
    for (width, height, bicubic, bilinear) in [
        (56, 56, 0x0ccd_cad3_9581_fa61, 0x4217_9d9e_fd95_c9fd),
        (30, 100, 0x5b30_b441_0b7e_35f2, 0x569b_7b92_a82f_20bf),
        (50, 120, 0xc0cf_1921_e6d3_6303, 0xefe4_9f56_f2eb_f7ba),
    ] {
        let resized = image.resize_as_pillow_13(width, height);
        assert_eq!(fnv(resized.pixels()), bicubic, "{width}x{height}");
        let resized = image.resize_bilinear(width, height);
        assert_eq!(fnv(resized.pixels()), bilinear, "{width}x{height}");
    }
    // The two passes in the other order, one at a time.
    let older = image.resize(56, 56);
    assert_eq!(fnv(older.pixels()), 0xa1f8_e50b_e37d_2e06);
    assert_eq!(older, image.resize(56, 140).resize(56, 56));
    Ok(())
}

#[test]
fn normalised_matches_reference() -> Result {
    let values = drawn("img.c", 448, 300)?.resize(448, 448).normalised();
    let plane = 448 * 448;
    for (channel, expected) in [1.375_545_9, -1.913_165_2, -1.246_710_1]
        .into_iter()
        .enumerate()
    {
        let found = values[channel * plane];
        // The specification prints eight digits.
        assert!(
            (found - expected).abs() < 1e-7,
            "channel {channel}: {found}"
        );
    }
    Ok(())
}

/// Every picture of `expected.tsv` decodes to Pillow's bytes, with and without its
/// EXIF orientation.
#[test]
fn pictures_decode_as_pillow_does() -> Result {
    let table = fs::read_to_string(fixture("expected.tsv"))?;
    let as_stored = DecodeOptions {
        apply_orientation: false,
        ..DecodeOptions::default()
    };
    let mut wrong = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, plain @ ..] = &fields[..] else {
            return Err(format!("empty line in the table: {line:?}").into());
        };
        let (plain, turned) = plain.split_at(3);
        let size = match Image::read_size(fixture(name), &as_stored) {
            Ok((height, width)) => format!("{width} {height}"),
            Err(error) => error.to_string(),
        };
        if size != plain[..2].join(" ") {
            wrong.push(format!("{name}: the header says {size}"));
        }
        let images = [
            (Image::open_with(fixture(name), &as_stored), plain),
            (Image::open(fixture(name)), turned),
        ];
        for (image, expected) in images {
            let found = match image {
                Ok(image) => format!(
                    "{} {} {:016x}",
                    image.width(),
                    image.height(),
                    fnv(image.pixels())
                ),
                Err(error) => error.to_string(),
            };
            if found != expected.join(" ") {
                wrong.push(format!(
                    "{name}: found {found}, expected {}",
                    expected.join(" ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn content_decides_the_format_not_the_extension() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("really_a_jpeg.png");
    fs::copy(fixture("jpeg_444.jpg"), &path)?;
    assert_eq!(Image::open(&path)?, Image::open(fixture("jpeg_444.jpg"))?);
    Ok(())
}

#[test]
fn extreme_shapes_survive_a_round_trip() -> Result {
    let folder = tempfile::tempdir()?;
    for (width, height) in [(1, 1), (1, 65_535), (65_535, 1)] {
        let path = folder.path().join("shape.png");
        let image = drawn("shape", width, height)?;
        image.save_png(&path)?;
        assert_eq!(Image::open(&path)?, image);
        let resized = image.resize(8, 8);
        assert_eq!((resized.width(), resized.height()), (8, 8));
    }
    Ok(())
}

#[test]
fn saving_leaves_no_other_file_and_fails_by_name() -> Result {
    let folder = tempfile::tempdir()?;
    let image = drawn("saved", 4, 3)?;
    let path = folder.path().join("saved.png");
    image.save_png(&path)?;
    image.save_png(&path)?;
    assert_eq!(fs::read_dir(folder.path())?.count(), 1);

    let missing = folder.path().join("missing").join("saved.png");
    for path in [missing.as_path(), folder.path(), Path::new("/")] {
        let error = image.save_png(path).err().ok_or("saved all the same")?;
        assert!(matches!(error, ImageError::Write { .. }), "{error}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
        assert!(error.source().is_some());
    }
    assert_eq!(fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn refused_files_say_what_they_are() -> Result {
    let cases: [(&[u8], &str); 6] = [
        (
            &[],
            "`test`: is empty; expected a PNG, JPEG or WebP picture",
        ),
        (
            b"GIF89a......",
            "`test`: is GIF; refseg reads PNG, JPEG and WebP",
        ),
        (
            b"BM......",
            "`test`: is BMP; refseg reads PNG, JPEG and WebP",
        ),
        (
            b"<!DOCTYPE html>",
            "`test`: is HTML; refseg reads PNG, JPEG and WebP",
        ),
        (
            b"RIFF....WAVEfmt ",
            "`test`: is no known picture format (it begins with \"RIFF....\"); refseg reads PNG, JPEG and WebP",
        ),
        (
            b"\0\x01\xfe",
            "`test`: is no known picture format (it begins with \"\\x00\\x01\\xfe\"); refseg reads PNG, JPEG and WebP",
        ),
    ];
    for (bytes, message) in cases {
        let error = decode(bytes).err().ok_or("decoded all the same")?;
        assert_eq!(error.to_string(), message);
    }
    let error = Image::open(fixture("bad_format.gif"))
        .err()
        .ok_or("a GIF decoded")?;
    assert!(
        error
            .to_string()
            .ends_with("is GIF; refseg reads PNG, JPEG and WebP"),
        "{error}"
    );
    let error = Image::open(fixture("bad_animated.webp"))
        .err()
        .ok_or("it decoded")?;
    assert!(error.to_string().contains("is an animated WebP"), "{error}");
    for path in [fixture("absent.png"), fixture("")] {
        let error = Image::open(path).err().ok_or("there is no such file")?;
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
    }
    Ok(())
}

/// One picture of each format, with where its header keeps the size.
fn formats() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let names = [
        "png_rgb.png",
        "png_palette.png",
        "jpeg_420.jpg",
        "jpeg_444_progressive.jpg",
        "jpeg_cmyk.jpg",
        "jpeg_restart.jpg",
        "exif_6.jpg",
        "webp_lossy.webp",
        "webp_lossless.webp",
        "webp_lossy_alpha.webp",
        "webp_exif_6.webp",
    ];
    let read = |name| Ok((name, fs::read(fixture(name))?));
    names.into_iter().map(read).collect()
}

/// The same file with another size in its header.
fn with_size(name: &str, bytes: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let find = |marker: &[u8]| bytes.windows(marker.len()).position(|w| w == marker);
    let missing = || format!("{name}: no header");
    if name.starts_with("png") {
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    } else if name.ends_with("jpg") {
        let frame = find(b"\xff\xc0")
            .or(find(b"\xff\xc2"))
            .ok_or_else(missing)?;
        bytes[frame + 5..frame + 7].copy_from_slice(&(height as u16).to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&(width as u16).to_be_bytes());
    } else if let Some(at) = find(b"VP8L") {
        let rest = u32::from_le_bytes(bytes[at + 9..at + 13].try_into()?) & 0xf000_0000;
        let sides = rest | (width - 1) | (height - 1) << 14;
        bytes[at + 9..at + 13].copy_from_slice(&sides.to_le_bytes());
    } else {
        let at = find(b"\x9d\x01\x2a").ok_or_else(missing)?;
        bytes[at + 3..at + 5].copy_from_slice(&(width as u16).to_le_bytes());
        bytes[at + 5..at + 7].copy_from_slice(&(height as u16).to_le_bytes());
        if &bytes[12..16] == b"VP8X" {
            bytes[24..27].copy_from_slice(&(width - 1).to_le_bytes()[..3]);
            bytes[27..30].copy_from_slice(&(height - 1).to_le_bytes()[..3]);
        }
    }
    Ok(bytes)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[test]
fn a_huge_header_is_refused_before_decoding() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("huge");
    for (name, bytes) in formats()? {
        // WebP has 14 bits for a side.
        let side = if name.ends_with("webp") {
            16_383
        } else {
            60_000
        };
        let huge = with_size(name, &bytes, side, side)?;
        fs::write(&path, &huge)?;
        let decoded = decode(&huge).err().ok_or(name)?;
        let measured = Image::read_size(&path, &DecodeOptions::default());
        for error in [decoded, measured.err().ok_or(name)?] {
            match error {
                ImageError::TooManyPixels {
                    width,
                    height,
                    max_pixels,
                    ..
                } => {
                    assert_eq!(
                        (width, height, max_pixels),
                        (side, side, 100_000_000),
                        "{name}"
                    );
                }
                error => return Err(format!("{name}: {error}").into()),
            }
        }
    }
    let options = DecodeOptions {
        max_pixels: 45 * 33 - 1,
        ..DecodeOptions::default()
    };
    let error = Image::open_with(fixture("png_rgb.png"), &options)
        .err()
        .ok_or("over the limit")?;
    assert!(
        error
            .to_string()
            .ends_with("is 45x33 pixels; at most 1484 pixels are allowed"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_side_of_zero_is_refused() -> Result {
    for name in ["png_rgb.png", "jpeg_420.jpg", "webp_lossy.webp"] {
        let bytes = with_size(name, &fs::read(fixture(name))?, 0, 33)?;
        let error = decode(&bytes).err().ok_or(name)?;
        // The JPEG decoder refuses such a header on its own.
        let refused = matches!(
            error,
            ImageError::ZeroSize {
                width: 0,
                height: 33,
                ..
            }
        ) || matches!(error, ImageError::Corrupt { .. });
        assert!(refused, "{name}: {error}");
    }
    Ok(())
}

#[test]
fn an_endless_file_is_not_read_to_its_end() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("endless.png");
    fs::copy(fixture("png_rgb.png"), &path)?;
    // Sparse: takes no space.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)?
        .set_len(1 << 40)?;
    let options = DecodeOptions {
        max_pixels: 0,
        ..DecodeOptions::default()
    };
    let error = Image::open_with(&path, &options)
        .err()
        .ok_or("a terabyte was read")?;
    assert!(matches!(error, ImageError::FileTooLarge { .. }), "{error}");
    Ok(())
}

#[test]
fn every_truncation_is_an_error() -> Result {
    for (name, bytes) in formats()? {
        for length in 0..bytes.len() {
            let Err(error) = decode(&bytes[..length]) else {
                // What is missing holds no pixels: JPEG's end marker, PNG's last
                // checksums, padding.
                assert!(
                    length + 64 > bytes.len(),
                    "{name} decodes from {length} bytes"
                );
                continue;
            };
            assert!(
                !matches!(error, ImageError::UnknownFormat { .. }),
                "{name} cut to {length} bytes: {error}"
            );
        }
        let half = decode(&bytes[..bytes.len() / 2]).err().ok_or(name)?;
        assert!(
            matches!(half, ImageError::Truncated { .. }),
            "{name}: {half:?}"
        );
    }
    Ok(())
}

/// Damaged files decode or fail, but never panic, and never allocate for a size that
/// the limit forbids.
#[test]
fn damaged_files_never_panic() -> Result {
    let options = DecodeOptions {
        max_pixels: 1 << 20,
        ..DecodeOptions::default()
    };
    for (name, bytes) in formats()? {
        let mut random = stream(name);
        let mut below = |limit: usize| random.next().map_or(0, |word| word as usize % limit);
        for _ in 0..2000 {
            let mut damaged = bytes.clone();
            for _ in 0..=below(4) {
                let at = below(damaged.len());
                match below(4) {
                    0 => damaged[at] ^= 1 << below(8),
                    1 => damaged[at] = below(256) as u8,
                    2 => drop(damaged.remove(at)),
                    _ => damaged.truncate(at.max(16)),
                }
            }
            let outcome = std::panic::catch_unwind(|| Image::decode(&damaged, name, &options));
            assert!(outcome.is_ok(), "{name}: {}", damaged.escape_ascii());
            if let Ok(Ok(image)) = outcome {
                assert!(u64::from(image.width()) * u64::from(image.height()) <= options.max_pixels);
            }
        }
    }
    Ok(())
}
