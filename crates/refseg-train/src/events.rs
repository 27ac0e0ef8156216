//! TensorBoard event files: scalars and pictures of a run, step by step.
//!
//! Format: records as in TensorFlow's `record_writer.h` (length, masked CRC-32C of the length, data, masked CRC-32C of
//! the data), each the message `Event` of `event.proto`. Only the handful of fields that are written stand below, each
//! by its number there.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes one event file.
///
/// What is written is on disk after [`EventWriter::flush`], and when the writer is dropped. A program that is killed
/// leaves at most one record cut off, which TensorBoard passes over.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

/// Why events could not be written.
#[derive(Debug, thiserror::Error)]
#[error("`{path}`: the events for TensorBoard cannot be written")]
pub struct EventError {
    /// The file, or the folder it was to be made in.
    pub path: PathBuf,
    /// The operating system's reason.
    #[source]
    pub source: io::Error,
}

impl EventWriter {
    /// Begins a new file in a folder, which is made where it does not exist.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub fn create(folder: &Path) -> Result<Self, EventError> {
        let now = wall_time();
        let (path, file) = new_file(folder, now as u64)?;
        let file = BufWriter::new(file);
        let mut writer = Self { path, file };
        writer.write(&event(now, 0, FILE_VERSION, VERSION))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Begins a new file beside those of a run that goes on after `done` steps.
    ///
    /// Where earlier files know more steps, TensorBoard forgets them: those were lost with the program that made them.
    ///
    /// # Errors
    /// As [`EventWriter::create`].
    pub fn resume(folder: &Path, done: u64) -> Result<Self, EventError> {
        let mut writer = Self::create(folder)?;
        writer.write(&event(wall_time(), done + 1, SESSION_LOG, &session_start()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file that is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes values down, each by its tag, such as `loss/mask`: TensorBoard groups by what stands before the slash.
    ///
    /// The format has room for an `f32`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), EventError> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            put_bytes(&mut summary, SUMMARY_VALUE, &scalar(tag, *value as f32));
        }
        self.write(&event(wall_time(), step, SUMMARY, &summary))
    }

    /// Writes a picture down: a PNG of `width` by `height` pixels. JPEG and GIF are shown too.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        png: &[u8],
        width: u32,
        height: u32,
    ) -> Result<(), EventError> {
        let mut summary = Vec::new();
        put_bytes(
            &mut summary,
            SUMMARY_VALUE,
            &picture(tag, png, width, height),
        );
        self.write(&event(wall_time(), step, SUMMARY, &summary))
    }

    /// Brings everything to disk, for TensorBoard to see.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> Result<(), EventError> {
        self.file.flush().map_err(|source| self.failed(source))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), EventError> {
        let written = self.file.write_all(&record(event));
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> EventError {
        EventError {
            path: self.path.clone(),
            source,
        }
    }
}

/// The format's version, which the first event of each file states.
const VERSION: &[u8] = b"brain.Event:2";

// Numbers of fields in `event.proto`, message `Event`,
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
// message `SessionLog`, whose status START is 1,
const STATUS: u64 = 1;
const START: u64 = 1;
// in `summary.proto`, message `Summary`,
const SUMMARY_VALUE: u64 = 1;
// `Summary.Value`
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;
const IMAGE: u64 = 4;
// and `Summary.Image`.
const HEIGHT: u64 = 1;
const WIDTH: u64 = 2;
const ENCODED: u64 = 4;

// What follows a field's number: how its value is stored.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH_AND_BYTES: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// An event, of which `field` holds `content`.
fn event(wall_time: f64, step: u64, field: u64, content: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    put_varint(&mut event, WALL_TIME << 3 | EIGHT_BYTES);
    event.extend(wall_time.to_le_bytes());
    put_number(&mut event, STEP, step);
    put_bytes(&mut event, field, content);
    event
}

fn session_start() -> Vec<u8> {
    let mut log = Vec::new();
    put_number(&mut log, STATUS, START);
    log
}

fn scalar(tag: &str, value: f32) -> Vec<u8> {
    let mut entry = Vec::new();
    put_bytes(&mut entry, TAG, tag.as_bytes());
    put_varint(&mut entry, SIMPLE_VALUE << 3 | FOUR_BYTES);
    entry.extend(value.to_le_bytes());
    entry
}

/// The colour space is left out: nobody reads it, and the picture says it itself.
fn picture(tag: &str, encoded: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut image = Vec::new();
    put_number(&mut image, HEIGHT, height.into());
    put_number(&mut image, WIDTH, width.into());
    put_bytes(&mut image, ENCODED, encoded);
    let mut entry = Vec::new();
    put_bytes(&mut entry, TAG, tag.as_bytes());
    put_bytes(&mut entry, IMAGE, &image);
    entry
}

/// A field that is a whole number; 0 goes without saying.
fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        put_varint(message, field << 3 | VARINT);
        put_varint(message, value);
    }
}

/// A field that is a text, bytes or another message.
fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(message, field << 3 | LENGTH_AND_BYTES);
    put_varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// Seven bits a byte, lowest first; the eighth says that more follow.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Frames an event.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// A checksum of data that may hold checksums of its own kind, `crc32c::Mask` in TensorFlow.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 is wrong, but no reason to stop.
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// A file of which TensorBoard knows by its name what it is, and by the seconds in it what it follows.
fn new_file(folder: &Path, seconds: u64) -> Result<(PathBuf, File), EventError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| EventError { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut number = 0;
    loop {
        let path = folder.join(format!(
            "events.out.tfevents.{seconds:010}.refseg.{number:03}"
        ));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(failed(&path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification of CRC-32C (RFC 3720, B.4), masked by hand: 0x8a9136aa rotated right by 15 is
    /// 0x6d551522, and with 0xa282ead8 added 0x0fd7fffa.
    #[test]
    fn checksums_are_masked_castagnoli() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn a_scalar_is_laid_out_as_the_format_says() {
        let mut summary = Vec::new();
        put_bytes(&mut summary, SUMMARY_VALUE, &scalar("loss", 1.5));
        let event = event(1.0, 300, SUMMARY, &summary);
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..], // 1: 1.0 as a double
            &[0x10, 0xac, 0x02],                       // 2: 300 = 0b10_0101100
            &[0x2a, 0x0d],                             // 5: a summary of 13 bytes
            &[0x0a, 0x0b],                             // 1: a value of 11 bytes
            &[0x0a, 0x04, b'l', b'o', b's', b's'],     // 1: the tag
            &[0x15, 0, 0, 0xc0, 0x3f],                 // 2: 1.5 as a float
        ];
        assert_eq!(event, expected.concat());
        let framed = record(&event);
        assert_eq!(framed[..8], [event.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(framed[12..framed.len() - 4], event);
    }

    /// Fixture: the same events, written by TensorBoard's own `RecordWriter`.
    #[test]
    fn a_file_is_what_tensorboard_writes() {
        let mut scalars = Vec::new();
        for (tag, value) in [("loss/mask", 0.25), ("loss/dice", f32::NAN), ("rate", -0.0)] {
            put_bytes(&mut scalars, SUMMARY_VALUE, &scalar(tag, value));
        }
        let png: Vec<u8> = (0..=255).collect();
        let mut image = Vec::new();
        put_bytes(
            &mut image,
            SUMMARY_VALUE,
            &picture("held out/das größte", &png, 640, 3),
        );
        let events = [
            event(1.7e9, 0, FILE_VERSION, VERSION),
            event(1.7e9 + 0.5, 1 << 40, SESSION_LOG, &session_start()),
            event(1.7e9 + 1.25, 1 << 40, SUMMARY, &scalars),
            event(1.7e9 + 2.0, (1 << 40) + 127, SUMMARY, &image),
        ];
        let file: Vec<u8> = events.iter().flat_map(|event| record(event)).collect();
        assert!(file == include_bytes!("../tests/fixtures/events/reference.tfevents"));
    }

    #[test]
    fn a_run_that_goes_on_has_a_file_more() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let inner = folder.path().join("events");
        let mut first = EventWriter::create(&inner)?;
        first.scalars(1, &[("loss", 2.0)])?;
        let second = EventWriter::resume(&inner, 1)?;
        assert!(first.path() < second.path());
        let name = second.path().file_name().and_then(|name| name.to_str());
        assert!(name.is_some_and(|name| name.starts_with("events.out.tfevents.")));
        // Before anything is flushed or dropped, a file says what it is.
        let begun = fs::read(first.path())?;
        assert_eq!(begun[12..][9..24], *b"\x1a\x0dbrain.Event:2");
        first.flush()?;
        assert!(fs::read(first.path())?.len() > begun.len());
        let resumed = fs::read(second.path())?;
        assert_eq!(
            resumed[begun.len() + 12 + 9..][..6],
            *b"\x10\x02\x3a\x02\x08\x01"
        );
        Ok(())
    }

    /// A made-up run, killed after step 30 and gone on with after step 20, to be looked at with TensorBoard: in the
    /// folder that `REFSEG_SAMPLE_EVENTS` names.
    #[test]
    fn samples_can_be_looked_at() -> Result<(), Box<dyn std::error::Error>> {
        let temporary = tempfile::tempdir()?;
        let named = std::env::var_os("REFSEG_SAMPLE_EVENTS");
        let folder = named.map_or_else(|| temporary.path().to_owned(), PathBuf::from);
        let mut first = EventWriter::create(&folder)?;
        for step in 1..=30 {
            first.scalars(step, &[("loss/all", 1.0), ("rate", 1e-3)])?;
        }
        drop(first);
        let picture = refseg::Image::from_rgb(64, 32, vec![200; 64 * 32 * 3])?;
        let file = temporary.path().join("picture.png");
        picture.save_png(&file)?;
        let mut second = EventWriter::resume(&folder, 20)?;
        for step in 21..=40 {
            second.scalars(step, &[("loss/all", 1.0 / step as f64), ("rate", 5e-4)])?;
        }
        second.image(40, "held out/1", &fs::read(&file)?, 64, 32)?;
        second.flush()?;
        Ok(())
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let taken = folder.path().join("taken");
        fs::write(&taken, "")?;
        let error = EventWriter::create(&taken)
            .err()
            .ok_or("a file in a file")?;
        assert_eq!(error.path, taken);
        assert!(error.to_string().contains("taken"));
        assert!(std::error::Error::source(&error).is_some());
        Ok(())
    }
}
