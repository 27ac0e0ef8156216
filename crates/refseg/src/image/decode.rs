//! From the bytes of a file to RGB pixels, distrusting every one of them.

use std::io::{self, Cursor};
use std::path::Path;

use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::metadata::Orientation;
use ::image::{ColorType, DynamicImage, ImageDecoder, Limits, RgbImage};
use libjpeg_turbo_rs::{DecodeLimits, Decoder as JpegDecoder, JpegError, PixelFormat};

use super::{DecodeOptions, Image, ImageError};

/// Most bytes a pixel takes while it is decoded: a progressive CMYK JPEG keeps four
/// planes, their 16-bit coefficients, and the result.
const BYTES_PER_PIXEL: u64 = 16;

/// Room for what a file holds besides pixels: EXIF, colour profile, text.
const METADATA_BYTES: u64 = 64 << 20;

/// Most scans of a progressive JPEG. Encoders write about ten; each one is a pass over
/// the whole picture, however few bytes it takes in the file.
const MAX_JPEG_SCANS: usize = 500;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Decodes a PNG, JPEG or WebP file; `path` only names it in errors.
pub(super) fn decode(
    bytes: &[u8],
    path: &Path,
    options: &DecodeOptions,
) -> Result<Image, ImageError> {
    let file = Source {
        bytes,
        path,
        options,
        format: check_format(bytes, path)?,
    };
    let (image, orientation) = match file.format {
        Format::Png => file.decode_png()?,
        Format::Jpeg => file.decode_jpeg()?,
        Format::WebP => file.decode_webp()?,
    };
    Ok(match orientation {
        Some(orientation) if options.apply_orientation => oriented(image, orientation),
        _ => image,
    })
}

/// Height and width in the header of a PNG, JPEG or WebP file; `path` only names it in
/// errors.
pub(super) fn size(
    bytes: &[u8],
    path: &Path,
    options: &DecodeOptions,
) -> Result<(u32, u32), ImageError> {
    let file = Source {
        bytes,
        path,
        options,
        format: check_format(bytes, path)?,
    };
    match file.format {
        Format::Png => file.png_size(),
        Format::Jpeg => file.jpeg_decoder().map(|(_, size)| size),
        Format::WebP => file
            .webp_header()
            .map(|header| (header.height, header.width)),
    }
}

/// Most bytes that decoding may take, and the longest file worth reading.
pub(super) fn memory_limit(options: &DecodeOptions) -> u64 {
    (options.max_pixels)
        .saturating_mul(BYTES_PER_PIXEL)
        .saturating_add(METADATA_BYTES)
        // Callers add one to see whether there is more.
        .min(u64::MAX - 1)
}

/// A format that can be read.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        }
    }
}

/// Tells the format by the first bytes. A beginning too short to tell apart counts as
/// the format it could become.
pub(super) fn check_format(bytes: &[u8], path: &Path) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty {
            path: path.to_path_buf(),
        });
    }
    let begins = |signature: &[u8]| {
        let shared = bytes.len().min(signature.len());
        bytes[..shared] == signature[..shared]
    };
    if begins(PNG_SIGNATURE) {
        return Ok(Format::Png);
    }
    if begins(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if begins(b"RIFF") && (bytes.len() < 12 || &bytes[8..12] == b"WEBP") {
        return Ok(Format::WebP);
    }
    Err(ImageError::UnknownFormat {
        path: path.to_path_buf(),
        found: describe(bytes),
    })
}

/// Names what people most often mistake for a picture that can be read.
fn describe(bytes: &[u8]) -> String {
    const KNOWN: [(usize, &[u8], &str); 21] = [
        (0, b"GIF8", "GIF"),
        (0, b"BM", "BMP"),
        (0, b"II*\0", "TIFF"),
        (0, b"MM\0*", "TIFF"),
        (4, b"ftypavif", "AVIF"),
        (4, b"ftypavis", "AVIF"),
        (4, b"ftyphei", "HEIC"),
        (4, b"ftyphev", "HEIC"),
        (4, b"ftypmif1", "HEIF"),
        (4, b"ftyp", "a video or another ISO media file"),
        (4, b"JXL ", "JPEG XL"),
        (0, b"\xff\x0a", "JPEG XL"),
        (4, b"jP  ", "JPEG 2000"),
        (0, b"8BPS", "PSD"),
        (0, b"\0\0\x01\0", "ICO"),
        (0, b"%PDF", "PDF"),
        (0, b"<svg", "SVG"),
        (0, b"<?xml", "XML"),
        (0, b"<!", "HTML"),
        (0, b"<html", "HTML"),
        (0, b"version https://git-lfs", "a Git LFS pointer"),
    ];
    let matches = |(at, magic, _): &&(usize, &[u8], &str)| {
        bytes.get(*at..).is_some_and(|tail| tail.starts_with(magic))
    };
    match KNOWN.iter().find(matches) {
        Some((_, _, name)) => (*name).to_owned(),
        None => {
            let start = &bytes[..bytes.len().min(8)];
            format!(
                "no known picture format (it begins with \"{}\")",
                start.escape_ascii()
            )
        }
    }
}

/// One file on its way to pixels.
struct Source<'a> {
    bytes: &'a [u8],
    path: &'a Path,
    options: &'a DecodeOptions,
    format: Format,
}

impl Source<'_> {
    fn decode_png(&self) -> Result<(Image, Option<Orientation>), ImageError> {
        let (_, width) = self.png_size()?;
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(METADATA_BYTES + u64::from(width) * BYTES_PER_PIXEL);
        let mut decoder = PngDecoder::with_limits(Cursor::new(self.bytes), limits)
            .map_err(|error| self.image_error(error))?;
        let orientation = decoder
            .orientation()
            .map_err(|error| self.image_error(error))?;
        Ok((self.read_rgb(decoder)?, Some(orientation)))
    }

    /// Height and width. Read here as well as by the decoder, which would fail on an
    /// impossible size with a message that does not tell it.
    fn png_size(&self) -> Result<(u32, u32), ImageError> {
        let header = self.field::<24>(0)?;
        let (width, height) = (be32(&header[16..20]), be32(&header[20..24]));
        self.check_size(width, height)?;
        Ok((height, width))
    }

    fn decode_webp(&self) -> Result<(Image, Option<Orientation>), ImageError> {
        // The decoder trusts sizes and lengths that appear twice in a file, and would
        // allocate for the larger one, so they are compared first.
        let webp = self.webp_header()?;
        let decoder =
            WebPDecoder::new(Cursor::new(self.bytes)).map_err(|error| self.image_error(error))?;
        let orientation = webp.exif.and_then(Orientation::from_exif_chunk);
        Ok((self.read_rgb(decoder)?, orientation))
    }

    /// The only place that knows which JPEG decoder is used, and how. It must agree with
    /// libjpeg-turbo in every bit: accurate integer IDCT, smooth chroma upsampling.
    ///
    /// With the height and width in its header.
    fn jpeg_decoder(&self) -> Result<(JpegDecoder<'_>, (u32, u32)), ImageError> {
        let limits = DecodeLimits {
            max_width: usize::from(u16::MAX),
            max_height: usize::from(u16::MAX),
            max_pixels: self.options.max_pixels,
            max_scans: MAX_JPEG_SCANS,
            max_memory: Some(memory_limit(self.options)),
        };
        let decoder = JpegDecoder::new_with_limits(self.bytes, limits)
            .map_err(|error| self.jpeg_error(error))?;
        let frame = decoder.header();
        let (width, height) = (u32::from(frame.width), u32::from(frame.height));
        self.check_size(width, height)?;
        Ok((decoder, (height, width)))
    }

    fn decode_jpeg(&self) -> Result<(Image, Option<Orientation>), ImageError> {
        let (mut decoder, (height, width)) = self.jpeg_decoder()?;
        let frame = decoder.header();
        if frame.precision != 8 {
            return Err(self.unsupported(format!("{}-bit JPEG", frame.precision)));
        }
        let colour = match frame.components.len() {
            1 | 3 => PixelFormat::Rgb,
            4 => PixelFormat::Cmyk,
            count => return Err(self.unsupported(format!("JPEG with {count} colour channels"))),
        };
        let sampling: Vec<(u8, u8)> = (frame.components.iter())
            .map(|channel| (channel.horizontal_sampling, channel.vertical_sampling))
            .collect();
        if let &[first, second, third, last] = &sampling[..]
            && !(first == last && second == third && is_multiple(first, second))
        {
            // The decoder panics at some of these, and no encoder writes them.
            return Err(self.unsupported(format!("CMYK JPEG sampled as {sampling:?}")));
        }
        let orientation = decoder.exif_orientation().and_then(Orientation::from_exif);
        decoder.set_output_format(colour);
        let decoded = decoder
            .decode_image()
            .map_err(|error| self.jpeg_error(error))?;
        let pixels = match colour {
            PixelFormat::Cmyk => rgb_from_inverted_cmyk(&decoded.data),
            _ => decoded.data,
        };
        Ok((self.image(width, height, pixels)?, orientation))
    }

    /// Refuses a size from a header before anything is allocated for it.
    fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        let path = self.path.to_path_buf();
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize {
                path,
                width,
                height,
            });
        }
        let max_pixels = self.options.max_pixels;
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(ImageError::TooManyPixels {
                path,
                width,
                height,
                max_pixels,
            });
        }
        Ok(())
    }

    fn read_rgb(&self, decoder: impl ImageDecoder) -> Result<Image, ImageError> {
        let (width, height) = decoder.dimensions();
        // The decoder may have read another header than we did.
        self.check_size(width, height)?;
        let colour = decoder.color_type();
        let mut samples = vec![0; decoder.total_bytes() as usize];
        decoder
            .read_image(&mut samples)
            .map_err(|error| self.image_error(error))?;
        if colour.bytes_per_pixel() > colour.channel_count() {
            let (words, _) = samples.as_chunks::<2>();
            samples = words
                .iter()
                .map(|&w| (u16::from_ne_bytes(w) >> 8) as u8)
                .collect();
        }
        let pixels = match colour {
            ColorType::L8 | ColorType::L16 => samples.iter().flat_map(|&l| [l; 3]).collect(),
            ColorType::La8 | ColorType::La16 => {
                let (pixels, _) = samples.as_chunks::<2>();
                pixels.iter().flat_map(|&[l, _]| [l; 3]).collect()
            }
            ColorType::Rgb8 | ColorType::Rgb16 => samples,
            ColorType::Rgba8 | ColorType::Rgba16 => {
                let (pixels, _) = samples.as_chunks::<4>();
                pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect()
            }
            other => return Err(self.unsupported(format!("{} of {other:?}", self.format.name()))),
        };
        self.image(width, height, pixels)
    }

    fn image(&self, width: u32, height: u32, pixels: Vec<u8>) -> Result<Image, ImageError> {
        Image::from_rgb(width, height, pixels).map_err(|error| self.corrupt(error))
    }

    /// The `N` bytes at `at`, which must be in the file.
    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], ImageError> {
        self.bytes
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .ok_or_else(|| self.truncated())
    }

    fn truncated(&self) -> ImageError {
        ImageError::Truncated {
            path: self.path.to_path_buf(),
            format: self.format.name(),
            found: self.bytes.len(),
        }
    }

    fn unsupported(&self, found: String) -> ImageError {
        ImageError::UnsupportedKind {
            path: self.path.to_path_buf(),
            format: self.format.name(),
            found,
        }
    }

    fn corrupt(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ImageError {
        ImageError::Corrupt {
            path: self.path.to_path_buf(),
            format: self.format.name(),
            source: source.into(),
        }
    }

    fn image_error(&self, error: ::image::ImageError) -> ImageError {
        match error {
            ::image::ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.truncated()
            }
            error => self.corrupt(error),
        }
    }

    fn jpeg_error(&self, error: JpegError) -> ImageError {
        match error {
            JpegError::UnexpectedEof => self.truncated(),
            JpegError::Unsupported(what) => self.unsupported(format!("JPEG with {what}")),
            error => self.corrupt(error),
        }
    }
}

/// What a WebP file says before its pixels begin.
struct WebPHeader<'a> {
    width: u32,
    height: u32,
    exif: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    fn webp_header(&self) -> Result<WebPHeader<'a>, ImageError> {
        const ANIMATION: u8 = 0b10;
        let mut canvas = None;
        let mut picture = None;
        let mut exif = None;
        let mut at = 12;
        // Anything behind the picture's own bytes belongs to somebody else.
        let riff = self.field::<8>(0)?;
        let end = 8 + le32(&riff[4..]) as usize;
        if end > self.bytes.len() {
            return Err(self.truncated());
        }
        while at + 8 <= end {
            let header = self.field::<8>(at)?;
            let length = le32(&header[4..]) as usize;
            let Some(body) = self.bytes.get(at + 8..at + 8 + length) else {
                return Err(self.truncated());
            };
            match &header[..4] {
                b"VP8X" if body.len() >= 10 => {
                    if body[0] & ANIMATION != 0 {
                        return Err(self.unsupported("an animated WebP".to_owned()));
                    }
                    canvas = Some((le24(&body[4..7]) + 1, le24(&body[7..10]) + 1));
                }
                b"VP8 " if body.len() >= 10 => {
                    let side =
                        |at| u32::from(u16::from_le_bytes([body[at], body[at + 1]]) & 0x3fff);
                    picture = picture.or(Some((side(6), side(8))));
                }
                b"VP8L" if body.len() >= 5 => {
                    let sides = le32(&body[1..5]);
                    let side = |shift: u32| (sides >> shift & 0x3fff) + 1;
                    picture = picture.or(Some((side(0), side(14))));
                }
                b"EXIF" => exif = exif.or(Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body))),
                _ => {}
            }
            // Chunks begin at even offsets.
            at += 8 + length + length % 2;
        }
        let Some((width, height)) = picture else {
            return Err(self.corrupt("there is no VP8 or VP8L chunk"));
        };
        match canvas {
            Some(canvas) if canvas != (width, height) => Err(self.corrupt(format!(
                "the canvas is {}x{}, but the picture in it is {width}x{height}",
                canvas.0, canvas.1
            ))),
            _ => {
                self.check_size(width, height)?;
                Ok(WebPHeader {
                    width,
                    height,
                    exif,
                })
            }
        }
    }
}

/// Pillow's way from CMYK to RGB. JPEG stores the inks inverted, as Adobe began it.
fn rgb_from_inverted_cmyk(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<4>();
    let shade = |ink: u8, light: u8| {
        let product = u32::from(255 - ink) * u32::from(light) + 128;
        // Divides by 255 and rounds.
        light - (((product >> 8) + product) >> 8) as u8
    };
    pixels
        .iter()
        .flat_map(|&[c, m, y, k]| [shade(c, k), shade(m, k), shade(y, k)])
        .collect()
}

fn oriented(image: Image, orientation: Orientation) -> Image {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let buffer = RgbImage::from_raw(image.width, image.height, image.pixels)
        .expect("an Image has width * height * 3 bytes");
    let mut picture = DynamicImage::ImageRgb8(buffer);
    picture.apply_orientation(orientation);
    Image {
        width: picture.width(),
        height: picture.height(),
        pixels: picture.into_rgb8().into_raw(),
    }
}

/// Whether one sampling, (horizontal, vertical), is a whole multiple of another.
fn is_multiple(fine: (u8, u8), coarse: (u8, u8)) -> bool {
    fine.0.is_multiple_of(coarse.0) && fine.1.is_multiple_of(coarse.1)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rfold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le24(bytes: &[u8]) -> u32 {
    le32(&bytes[..3])
}
