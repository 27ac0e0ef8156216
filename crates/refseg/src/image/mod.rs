//! Pictures: reading them from files, resizing them and normalising them for a
//! network.
//!
//! A model sees exactly what its Python reference saw: JPEG is decoded as
//! libjpeg-turbo does it, and [`Image::resize`] reproduces Pillow's bicubic filter bit
//! for bit, [`Image::resize_bilinear`] its bilinear one. Versions of Pillow differ in which
//! pass comes first, which moves some levels a little: MLLMSeg was published with Pillow up to
//! 11, what LLaVA-NeXT and Segment Anything are compared with was computed by Pillow 13.

mod decode;
mod resize;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use libjpeg_turbo_rs::{PixelFormat, Subsampling};

use self::resize::{Filter, Order};

/// Mean of each colour channel over ImageNet, for values in 0–1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of each colour channel over ImageNet, for values in 0–1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Mean of each colour channel over CLIP's pictures, for values in 0–1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];

/// Standard deviation of each colour channel over CLIP's pictures, for values in 0–1.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// A picture in RGB, 8 bits a channel, at least one pixel in size.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// How a file becomes an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Turns and mirrors the picture as its EXIF orientation says (default). The
    /// reference implementations ignore EXIF, so evaluation switches this off.
    pub apply_orientation: bool,
    /// Most pixels (width × height) a picture may have; checked in the header,
    /// before anything of that size is allocated. Decoding takes at most 16 bytes a
    /// pixel. Default: 100 million.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            apply_orientation: true,
            max_pixels: 100_000_000,
        }
    }
}

impl Image {
    /// Reads a PNG, JPEG or WebP file and applies its EXIF orientation.
    ///
    /// The content decides the format, not the file's extension. Transparency is
    /// dropped, not blended, as Pillow's `convert("RGB")` does; grey is replicated;
    /// of 16-bit samples the high byte is kept (Pillow does so for colour but clips
    /// grey at 255). Colour profiles are ignored. An animated PNG gives its default
    /// picture; an animated WebP, which has none, is refused.
    ///
    /// # Errors
    /// Any [`ImageError`] but [`ImageError::PixelCount`] and [`ImageError::Write`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(path, &DecodeOptions::default())
    }

    /// [`Image::open`] with options.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<Self, ImageError> {
        let path = path.as_ref();
        Self::decode(&read(path, options)?, path, options)
    }

    /// Height and width as the header of a PNG, JPEG or WebP file states them, before
    /// any EXIF orientation. The pixels are not decoded, so a file that is cut off or
    /// damaged behind its header may pass.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn read_size(
        path: impl AsRef<Path>,
        options: &DecodeOptions,
    ) -> Result<(u32, u32), ImageError> {
        let path = path.as_ref();
        decode::size(&read(path, options)?, path, options)
    }

    /// Decodes the bytes of a PNG, JPEG or WebP file, as [`Image::open`] describes.
    /// `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Image::open`], except that nothing is read from disk.
    pub fn decode(
        bytes: &[u8],
        name: impl AsRef<Path>,
        options: &DecodeOptions,
    ) -> Result<Self, ImageError> {
        decode::decode(bytes, name.as_ref(), options)
    }

    /// Wraps pixels that are already RGB, row by row from the top left, three bytes
    /// a pixel.
    ///
    /// # Errors
    /// [`ImageError::PixelCount`] unless there are `width * height * 3` bytes, and at
    /// least one pixel.
    pub fn from_rgb(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        let expected = (u64::from(width) * u64::from(height)).saturating_mul(3);
        if expected == 0 || pixels.len() as u64 != expected {
            return Err(ImageError::PixelCount {
                width,
                height,
                found: pixels.len(),
                expected,
            });
        }
        Ok(Self {
            width,
            height,
            pixels,
        })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// RGB bytes, row by row from the top left: `height * width * 3` of them.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Resizes to exactly `width` × `height`, whatever the aspect ratio, with the bicubic filter
    /// of Pillow up to 11, horizontal pass first: the result has the same bytes.
    ///
    /// # Panics
    /// If `width` or `height` is zero: sizes come from a checked configuration, not
    /// from a picture.
    pub fn resize(&self, width: u32, height: u32) -> Self {
        self.resize_with(width, height, Filter::Bicubic, Order::HorizontalFirst)
    }

    /// [`Image::resize`] with the bytes of Pillow 13, where the vertical pass comes first if the
    /// height shrinks by more than twice as many pixels as the width.
    ///
    /// # Panics
    /// As [`Image::resize`].
    pub fn resize_as_pillow_13(&self, width: u32, height: u32) -> Self {
        self.resize_with(width, height, Filter::Bicubic, Order::ShrinkFirst)
    }

    /// [`Image::resize_as_pillow_13`] with the bilinear filter, which mixes all the pixels that
    /// become one when a picture shrinks.
    ///
    /// # Panics
    /// As [`Image::resize`].
    pub fn resize_bilinear(&self, width: u32, height: u32) -> Self {
        self.resize_with(width, height, Filter::Bilinear, Order::ShrinkFirst)
    }

    fn resize_with(&self, width: u32, height: u32, filter: Filter, order: Order) -> Self {
        assert!(
            width > 0 && height > 0,
            "cannot resize to {width}x{height}: both sides must be positive"
        );
        let from = (self.width as usize, self.height as usize);
        let to = (width as usize, height as usize);
        Self {
            width,
            height,
            pixels: resize::resize(&self.pixels, from, to, filter, order),
        }
    }

    /// What a window of `width` × `height` shows whose upper left corner lies at
    /// pixel (`left`, `top`); black where it reaches beyond the picture.
    ///
    /// # Panics
    /// If `width` or `height` is zero, as [`Image::resize`].
    pub fn window(&self, left: i64, top: i64, width: u32, height: u32) -> Self {
        assert!(
            width > 0 && height > 0,
            "no window is {width}x{height}: both sides must be positive"
        );
        let overlap = |start: i64, side: u32, limit: u32| {
            let end = (start + i64::from(side)).clamp(0, i64::from(limit));
            start.clamp(0, i64::from(limit)) as usize..end as usize
        };
        let columns = overlap(left, width, self.width);
        let mut pixels = vec![0; width as usize * height as usize * 3];
        for y in overlap(top, height, self.height) {
            let row =
                &self.pixels[y * self.width as usize * 3..][columns.start * 3..columns.end * 3];
            let (into_x, into_y) = (columns.start as i64 - left, y as i64 - top);
            let start = (into_y as usize * width as usize + into_x as usize) * 3;
            pixels[start..start + row.len()].copy_from_slice(row);
        }
        Self {
            width,
            height,
            pixels,
        }
    }

    /// ImageNet-normalised values, `(p / 255 - mean) / std` for each channel in f32.
    ///
    /// # Shapes
    /// - returns `(3, height, width)`: one plane each for red, green and blue
    pub fn normalised(&self) -> Vec<f32> {
        self.normalised_by(IMAGENET_MEAN, IMAGENET_STD)
    }

    /// As [`Image::normalised`], with another mean and deviation of each channel in 0–1.
    ///
    /// # Shapes
    /// - returns `(3, height, width)`: one plane each for red, green and blue
    pub fn normalised_by(&self, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
        let (pixels, _) = self.pixels.as_chunks::<3>();
        let mut planes = Vec::with_capacity(self.pixels.len());
        for channel in 0..3 {
            let (mean, std) = (mean[channel], std[channel]);
            let levels: [f32; 256] =
                std::array::from_fn(|level| (level as f32 / 255.0 - mean) / std);
            planes.extend(pixels.iter().map(|rgb| levels[usize::from(rgb[channel])]));
        }
        planes
    }

    /// Encodes the picture as baseline JPEG. `quality` is libjpeg's, from 1 to 100.
    ///
    /// # Errors
    /// [`ImageError::Encode`] if a side is longer than the 65,535 pixels JPEG has room for.
    pub fn to_jpeg(&self, quality: u8, chroma: Chroma) -> Result<Vec<u8>, ImageError> {
        libjpeg_turbo_rs::compress_optimized(
            &self.pixels,
            self.width as usize,
            self.height as usize,
            PixelFormat::Rgb,
            quality.clamp(1, 100),
            match chroma {
                Chroma::Full => Subsampling::S444,
                Chroma::Half => Subsampling::S420,
            },
        )
        .map_err(|source| ImageError::Encode {
            width: self.width,
            height: self.height,
            source: Box::new(source),
        })
    }

    /// Writes the picture as PNG, whatever the extension of `path`. The file appears
    /// complete or not at all.
    ///
    /// # Errors
    /// [`ImageError::Write`].
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<(), ImageError> {
        let size = (self.width, self.height);
        save_png(path.as_ref(), size, ExtendedColorType::Rgb8, &self.pixels)
    }
}

/// How finely JPEG stores colour, as opposed to brightness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// For every pixel (4:4:4): thin coloured lines stay as they are.
    Full,
    /// For two by two pixels (4:2:0), as most programs store photographs.
    Half,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

/// Why a picture could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be opened or read.
    #[error("`{path}`: cannot read the picture")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file could not be encoded or written.
    #[error("`{path}`: cannot write the picture")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the encoder or the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("`{path}`: is empty; expected a PNG, JPEG or WebP picture")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file has more bytes than any picture within the pixel limit needs.
    #[error("`{path}`: has more than {max_bytes} bytes, the most that is read of a picture")]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, which follows from [`DecodeOptions::max_pixels`].
        max_bytes: u64,
    },
    /// The content is none of the formats that are read.
    #[error("`{path}`: is {found}; refseg reads PNG, JPEG and WebP")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What it is, or how it begins.
        found: String,
    },
    /// The format is read, but not this kind of it.
    #[error("`{path}`: is {found}, a kind of {format} that refseg does not read")]
    UnsupportedKind {
        /// The file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// The kind found.
        found: String,
    },
    /// The file ends before the picture does.
    #[error("`{path}`: {format} ends early, after {found} bytes; the file is cut off")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// Number of bytes there are.
        found: usize,
    },
    /// The content contradicts its format.
    #[error("`{path}`: {format} is damaged")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// What the decoder found.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The header claims a side of zero.
    #[error("`{path}`: is {width}x{height} pixels; both sides must be positive")]
    ZeroSize {
        /// The file.
        path: PathBuf,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
    },
    /// The header claims more pixels than [`DecodeOptions::max_pixels`].
    #[error("`{path}`: is {width}x{height} pixels; at most {max_pixels} pixels are allowed")]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// JPEG has no room for a picture of this size.
    #[error("a {width}x{height} picture cannot be encoded as JPEG")]
    Encode {
        /// Width of the picture.
        width: u32,
        /// Height of the picture.
        height: u32,
        /// What the encoder said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A buffer of pixels does not have the size of its picture.
    #[error(
        "a {width}x{height} RGB picture needs {expected} bytes and at least one pixel; found {found} bytes"
    )]
    PixelCount {
        /// Width asked for.
        width: u32,
        /// Height asked for.
        height: u32,
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: u64,
    },
}

/// Reads a file that begins as a picture does, and not more of it than decoding may take.
fn read(path: &Path, options: &DecodeOptions) -> Result<Vec<u8>, ImageError> {
    let max_bytes = decode::memory_limit(options);
    let read = |source| ImageError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    // What is no picture is refused by its beginning, however long it is.
    let beginning = (&file).take(64).read_to_end(&mut bytes);
    beginning.map_err(read)?;
    decode::check_format(&bytes, path)?;
    // Reading stops one byte past the limit, so an endless file ends too.
    let limit = (max_bytes + 1).saturating_sub(bytes.len() as u64);
    let rest = file.take(limit).read_to_end(&mut bytes);
    rest.map_err(read)?;
    if bytes.len() as u64 > max_bytes {
        return Err(ImageError::FileTooLarge {
            path: path.to_path_buf(),
            max_bytes,
        });
    }
    Ok(bytes)
}

/// Writes `pixels` as a PNG of `size` (width, height): encoded in memory, written to
/// a temporary file beside `path`, then renamed, so that no half-written file is ever
/// seen under that name.
pub(crate) fn save_png(
    path: &Path,
    (width, height): (u32, u32),
    colour: ExtendedColorType,
    pixels: &[u8],
) -> Result<(), ImageError> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(pixels, width, height, colour)
        .map_err(io::Error::other)
        .and_then(|()| write_whole(path, &png))
        .map_err(|source| ImageError::Write {
            path: path.to_path_buf(),
            source,
        })
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let message = "the path does not end in a file name";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    // Process and count keep two writers of the same file apart.
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{count}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);

    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; the leftover may not even exist.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_rgb_checks_the_number_of_bytes() {
        assert!(Image::from_rgb(2, 1, vec![0; 6]).is_ok());
        for (width, height, bytes) in [(2, 1, 5), (0, 1, 0), (u32::MAX, u32::MAX, 3)] {
            let result = Image::from_rgb(width, height, vec![0; bytes]);
            assert!(matches!(result, Err(ImageError::PixelCount { .. })));
        }
    }

    #[test]
    fn jpeg_comes_back_nearly_the_same() -> Result<(), ImageError> {
        // A slope has no edges for JPEG to blur: every level comes back within a few.
        let pixels = (0..40 * 30).flat_map(|i| [(i % 40 * 6) as u8, (i / 40 * 8) as u8, 90]);
        let image = Image::from_rgb(40, 30, pixels.collect())?;
        let jpeg = image.to_jpeg(95, Chroma::Half)?;
        let back = Image::decode(&jpeg, "memory", &DecodeOptions::default())?;
        let apart = (image.pixels().iter().zip(back.pixels())).map(|(a, b)| a.abs_diff(*b));
        assert!(apart.max() <= Some(6));
        assert!(image.to_jpeg(20, Chroma::Half)?.len() < jpeg.len());
        assert!(image.to_jpeg(95, Chroma::Full)?.len() > jpeg.len());
        let long = Image::from_rgb(65_536, 1, vec![0; 65_536 * 3])?;
        assert!(matches!(
            long.to_jpeg(90, Chroma::Half),
            Err(ImageError::Encode { .. })
        ));
        Ok(())
    }

    #[test]
    fn normalised_gives_one_plane_a_channel() -> Result<(), ImageError> {
        let image = Image::from_rgb(2, 1, vec![0, 255, 0, 255, 0, 0])?;
        let expected = [
            (0.0 - 0.485) / 0.229,
            (1.0 - 0.485) / 0.229,
            (1.0 - 0.456) / 0.224,
            (0.0 - 0.456) / 0.224,
            (0.0 - 0.406) / 0.225,
            (0.0 - 0.406) / 0.225,
        ];
        assert_eq!(image.normalised(), expected);
        Ok(())
    }
}
