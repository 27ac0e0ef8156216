//! What can be typed: commands, options and their environment variables.

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::{
    ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{FalseyValueParser, PossibleValuesParser},
};
use refseg_data::dataset::{DataError, Source};

use crate::commands::init;

const EXAMPLES: &str = "\
Examples:
  refseg segment shapes.png \"the small red ring\" \"all blue circles\"
  refseg segment photo.jpg \"left chair\" -m models/mllmseg-2b --json
  refseg init internvl2_5-1b models/random && refseg bench models/random

Every option can also be given as an environment variable, named with it.";

/// An image and a phrase in, a mask out.
#[derive(Debug, Parser)]
#[command(name = "refseg", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct CommonArgs {
    /// Say nothing but results and errors
    #[arg(
        short,
        long,
        global = true,
        env = "REFSEG_QUIET",
        conflicts_with = "verbose"
    )]
    #[arg(value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
    /// Say more
    #[arg(short, long, global = true, env = "REFSEG_VERBOSE", action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Threads to compute with; one for each core unless given
    #[arg(long, global = true, env = "REFSEG_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find what phrases mean in a picture
    Segment(SegmentArgs),
    /// Find what points and boxes mean in a picture, with a Segment Anything model
    Sam(SamArgs),
    /// Ask a multimodal language model about a picture
    Ask(AskArgs),
    /// Show what a model folder holds, without reading its weights
    Info(InfoArgs),
    /// Make a model with random weights, for tests and benchmarks at real sizes
    Init(InitArgs),
    /// Rewrite a model: merge LoRA, .bin to safetensors, another type
    Convert(ConvertArgs),
    /// Measure time and memory of a model
    Bench(BenchArgs),
    /// Judge a model on a data set
    Eval(EvalArgs),
    /// Judge anybody's masks on a data set, or compare two systems
    Score(ScoreArgs),
    /// Look after data sets
    Data(DataCommandArgs),
    /// Draw scenes as a data set in RefCOCO's layout
    Scenes(ScenesArgs),
    /// Train a small model from scratch on drawn scenes, or any model on pictures with phrases
    Train(TrainArgs),
}

/// Which model, and how it computes.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model folder; or `builtin` or `builtin-sam4mllm`, small models that know drawn shapes, not photographs
    #[arg(short, long, env = "REFSEG_MODEL", default_value = "builtin")]
    pub(crate) model: PathBuf,
    /// Have masks drawn anew from their boxes by a Segment Anything model: its checkpoint or folder
    #[arg(long, env = "REFSEG_REFINE", value_name = "sam:MODEL", value_parser = refiner)]
    pub(crate) refine: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

/// How a model computes.
#[derive(Debug, Args)]
pub(crate) struct ComputeArgs {
    /// Where to compute
    #[arg(long, env = "REFSEG_DEVICE", default_value = "cpu")]
    pub(crate) device: Device,
    /// In which numbers weights are kept; `auto` is the fastest that moves masks little
    #[arg(long, env = "REFSEG_PRECISION", default_value = "f32")]
    pub(crate) precision: Precision,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Device {
    Cpu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Precision {
    F32,
    Bf16,
    Int16,
    Int8,
    Auto,
}

#[derive(Debug, Args)]
pub(crate) struct SegmentArgs {
    /// Picture to look at: PNG, JPEG or WebP
    pub(crate) image: PathBuf,
    /// What to look for, such as "the small red ring"
    #[arg(required = true, value_parser = phrase)]
    pub(crate) phrases: Vec<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Ask for all phrases in one prompt, as published evaluations do
    #[arg(long, env = "REFSEG_JOINT", value_parser = FalseyValueParser::new())]
    pub(crate) joint: bool,
    /// Write one mask a phrase as PNG into this folder
    #[arg(long, env = "REFSEG_MASKS", value_name = "DIR")]
    pub(crate) masks: Option<PathBuf>,
    /// Where to write the overlay [default: STEM.overlay.png beside the picture]
    #[arg(long, env = "REFSEG_OVERLAY", value_name = "FILE")]
    pub(crate) overlay: Option<PathBuf>,
    /// Write no overlay
    #[arg(long, env = "REFSEG_NO_OVERLAY", value_parser = FalseyValueParser::new())]
    pub(crate) no_overlay: bool,
    /// Write the probabilities before resizing: f32, [phrases, side, side]
    #[arg(long, env = "REFSEG_PROBS", value_name = "FILE.npy")]
    pub(crate) probs: Option<PathBuf>,
    /// Print each mask in COCO's run-length code, one JSON object a line
    #[arg(long, env = "REFSEG_RLE", value_parser = FalseyValueParser::new())]
    pub(crate) rle: bool,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Do the work this many times, and report median times
    #[arg(long, env = "REFSEG_REPEAT", value_name = "N", default_value = "1")]
    pub(crate) repeat: NonZeroUsize,
    /// Take the picture as it is stored, without its EXIF orientation
    #[arg(long, env = "REFSEG_IGNORE_ORIENTATION", value_parser = FalseyValueParser::new())]
    pub(crate) ignore_orientation: bool,
    /// Refuse pictures of more pixels than this
    #[arg(
        long,
        env = "REFSEG_MAX_PIXELS",
        value_name = "N",
        default_value = "100000000"
    )]
    pub(crate) max_pixels: u64,
}

/// Points all describe one object. Each box is a prompt of its own; points go
/// with one box at most. Coordinates are pixels of the picture, from its upper
/// left corner.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("prompt").args(["points", "not_points", "boxes"]).required(true).multiple(true))]
pub(crate) struct SamArgs {
    /// Picture to look at: PNG, JPEG or WebP
    pub(crate) image: PathBuf,
    /// Checkpoint of SAM, MobileSAM or EfficientViT-SAM, or a folder with one; or `builtin-sam4mllm`
    #[arg(short, long, env = "REFSEG_MODEL")]
    pub(crate) model: PathBuf,
    /// Lay these fine-tuned tensors over the model, such as those of a decoder
    #[arg(long, env = "REFSEG_DECODER", value_name = "FILE")]
    pub(crate) decoder: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// A point on the object; can be given several times
    #[arg(long = "point", env = "REFSEG_POINT", value_name = "X,Y", value_parser = numbers::<2>)]
    #[arg(value_delimiter = ' ', allow_hyphen_values = true)]
    pub(crate) points: Vec<[f64; 2]>,
    /// A point that is not on the object; can be given several times
    #[arg(long = "not", env = "REFSEG_NOT", value_name = "X,Y", value_parser = numbers::<2>)]
    #[arg(value_delimiter = ' ', allow_hyphen_values = true)]
    pub(crate) not_points: Vec<[f64; 2]>,
    /// A box around the object; several are several prompts, without points
    #[arg(long = "box", env = "REFSEG_BOX", value_name = "X1,Y1,X2,Y2", value_parser = numbers::<4>)]
    #[arg(value_delimiter = ' ', allow_hyphen_values = true)]
    pub(crate) boxes: Vec<[f64; 4]>,
    /// Begin with these mask logits, as --low-res writes them: one mask for each prompt
    #[arg(long, env = "REFSEG_MASK_INPUT", value_name = "FILE.npy")]
    pub(crate) mask_input: Option<PathBuf>,
    /// Give several masks for each prompt, since a point may mean the whole or a part
    #[arg(long, env = "REFSEG_MULTIMASK", value_parser = FalseyValueParser::new())]
    pub(crate) multimask: bool,
    /// Write the masks as PNG into this folder
    #[arg(long, env = "REFSEG_MASKS", value_name = "DIR")]
    pub(crate) masks: Option<PathBuf>,
    /// Where to write the overlay [default: STEM.overlay.png beside the picture]
    #[arg(long, env = "REFSEG_OVERLAY", value_name = "FILE")]
    pub(crate) overlay: Option<PathBuf>,
    /// Write no overlay
    #[arg(long, env = "REFSEG_NO_OVERLAY", value_parser = FalseyValueParser::new())]
    pub(crate) no_overlay: bool,
    /// Write the logits at the size of the picture: f32, [masks, height, width]
    #[arg(long, env = "REFSEG_LOGITS", value_name = "FILE.npy")]
    pub(crate) logits: Option<PathBuf>,
    /// Write the logits as the decoder gives them: f32, [masks, side, side]
    #[arg(long, env = "REFSEG_LOW_RES", value_name = "FILE.npy")]
    pub(crate) low_res: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Do the work this many times, and report median times
    #[arg(long, env = "REFSEG_REPEAT", value_name = "N", default_value = "1")]
    pub(crate) repeat: NonZeroUsize,
    /// Take the picture as it is stored, without its EXIF orientation
    #[arg(long, env = "REFSEG_IGNORE_ORIENTATION", value_parser = FalseyValueParser::new())]
    pub(crate) ignore_orientation: bool,
    /// Refuse pictures of more pixels than this
    #[arg(
        long,
        env = "REFSEG_MAX_PIXELS",
        value_name = "N",
        default_value = "100000000"
    )]
    pub(crate) max_pixels: u64,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Picture to look at: PNG, JPEG or WebP
    pub(crate) image: PathBuf,
    /// What to ask, such as "What stands behind the kettle?"
    #[arg(value_parser = question)]
    pub(crate) question: String,
    /// Folder of a LLaVA-NeXT, Qwen-VL or InternVL model, or `builtin-sam4mllm`
    #[arg(short, long, env = "REFSEG_MODEL")]
    pub(crate) model: PathBuf,
    /// Merge the LoRA adapter of this folder into the model
    #[arg(long, env = "REFSEG_ADAPTER", value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// End the answer after this many tokens
    #[arg(
        long,
        env = "REFSEG_MAX_TOKENS",
        value_name = "N",
        default_value = "256"
    )]
    pub(crate) max_tokens: NonZeroUsize,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Take the picture as it is stored, without its EXIF orientation
    #[arg(long, env = "REFSEG_IGNORE_ORIENTATION", value_parser = FalseyValueParser::new())]
    pub(crate) ignore_orientation: bool,
    /// Refuse pictures of more pixels than this
    #[arg(
        long,
        env = "REFSEG_MAX_PIXELS",
        value_name = "N",
        default_value = "100000000"
    )]
    pub(crate) max_pixels: u64,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Model folder, or `builtin`
    #[arg(default_value = "builtin")]
    pub(crate) model: PathBuf,
    /// Say how this machine would compute instead
    #[arg(
        long,
        // `REFSEG_CPU` names an instruction set.
        env = "REFSEG_INFO_CPU",
        value_parser = FalseyValueParser::new(),
        conflicts_with = "model"
    )]
    pub(crate) cpu: bool,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// Besides the sizes, a model needs a tokenizer, and the real ones are not
/// refseg's to give away. The one written here knows the words of prompts and
/// of drawn scenes; any other text costs a token a byte. Its special tokens
/// have their official ids.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Size of the model
    #[arg(value_parser = PossibleValuesParser::new(init::presets()))]
    pub(crate) preset: String,
    /// Folder to make; it must not exist, or be empty
    pub(crate) dir: PathBuf,
    /// Seed of the random weights
    #[arg(long, env = "REFSEG_SEED", default_value = "0")]
    pub(crate) seed: u64,
    /// Type of the weights on disk
    #[arg(long, env = "REFSEG_DTYPE", default_value = "bf16")]
    pub(crate) dtype: Dtype,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Model folder to read
    pub(crate) src: PathBuf,
    /// Model folder to make; it must not exist
    pub(crate) dst: PathBuf,
    /// Type of the weights [default: as they are]
    #[arg(long, env = "REFSEG_DTYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// Merge LoRA into the weights it adapts
    #[arg(long, env = "REFSEG_MERGE", value_parser = FalseyValueParser::new())]
    pub(crate) merge: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    /// 32-bit floats
    F32,
    /// IEEE half precision
    F16,
    /// The upper half of an f32
    Bf16,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model folder, `builtin` or `builtin-sam4mllm`
    #[arg(default_value = "builtin")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Picture to look at [default: a drawn scene]
    #[arg(long, env = "REFSEG_IMAGE", value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Phrases asked at once
    #[arg(long, env = "REFSEG_PHRASES", value_name = "N", default_value = "8")]
    pub(crate) phrases: NonZeroUsize,
    /// Compare masks with those of f32 instead, on this many drawn scenes
    #[arg(
        long,
        env = "REFSEG_AGREEMENT",
        value_name = "SCENES",
        conflicts_with_all = ["image", "phrases", "repeat"]
    )]
    pub(crate) agreement: Option<NonZeroUsize>,
    /// Say what the first phrase's time goes to instead
    #[arg(long, env = "REFSEG_PROFILE", conflicts_with_all = ["phrases", "agreement"], value_parser = FalseyValueParser::new())]
    pub(crate) profile: bool,
    /// Measure each step this many times, after once for warming up
    #[arg(long, env = "REFSEG_REPEAT", value_name = "N", default_value = "5")]
    pub(crate) repeat: NonZeroUsize,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// Which pictures and phrases.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Data set: scenes, refcoco, refcoco+, refcocog, refclef, grefcoco, reasonseg, coco, folder, jsonl, vqav2
    #[arg(long, env = "REFSEG_DATASET", default_value = "scenes")]
    pub(crate) dataset: DatasetName,
    /// Split of the data set [default: val; held-out for scenes; all where there are no splits]
    #[arg(long, env = "REFSEG_SPLIT", value_name = "SPLIT")]
    pub(crate) split: Option<String>,
    /// Where the data set is: the folder that holds `refer_seg`, or its own folder or file
    #[arg(long, env = "REFSEG_DATA", value_name = "ROOT")]
    pub(crate) data: Option<PathBuf>,
    /// Pass over entries that are at fault, and say which
    #[arg(long, env = "REFSEG_KEEP_GOING", value_parser = FalseyValueParser::new())]
    pub(crate) keep_going: bool,
    /// Of scenes: how many
    #[arg(long, env = "REFSEG_COUNT", value_name = "N", default_value = "2000")]
    pub(crate) count: NonZeroUsize,
    /// Of scenes: index of the first
    #[arg(long, env = "REFSEG_FIRST", value_name = "N", default_value = "0")]
    pub(crate) first: u64,
    /// Of scenes: their side in pixels
    #[arg(long, env = "REFSEG_SIZE", value_name = "PX", default_value = "224")]
    pub(crate) size: u32,
}

/// What can be evaluated or scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatasetName {
    /// Scenes that refseg draws
    Scenes,
    /// Questions about pictures: answers are judged, not masks
    Vqav2,
    /// A data set in files
    Source(Source),
}

impl FromStr for DatasetName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "scenes" => Ok(Self::Scenes),
            "vqav2" => Ok(Self::Vqav2),
            _ => name.parse().map(Self::Source).map_err(|_: DataError| {
                let known = Source::ALL.map(Source::name).join(", ");
                format!("there is no data set `{name}`; expected one of scenes, {known}, vqav2")
            }),
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scenes => f.write_str("scenes"),
            Self::Vqav2 => f.write_str("vqav2"),
            Self::Source(source) => source.fmt(f),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// How phrases are asked
    #[arg(long, env = "REFSEG_PROTOCOL", default_value = "single")]
    pub(crate) protocol: Protocol,
    /// Count what was answered "not found" with an empty mask; published rules do not
    #[arg(long, env = "REFSEG_BLANK_REJECTED", value_parser = FalseyValueParser::new())]
    pub(crate) blank_rejected: bool,
    /// Folder for predictions.jsonl, metrics.json and report.html; called again, the run goes on. Of
    /// vqav2, for answers.json, anew each time
    #[arg(long, env = "REFSEG_OUT", value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Only the first pictures
    #[arg(long, env = "REFSEG_LIMIT", value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,
    /// Only part I of N, to share the work; `refseg score --merge` joins the parts
    #[arg(long, env = "REFSEG_SHARD", value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    /// Print metrics.json
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// Every so many-th picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Counted from 1.
    pub(crate) index: usize,
    pub(crate) count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(format!(
                "`{text}` is no part of a whole, such as 1/4 to 4/4"
            )),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Answers: JSON lines with COCO run-length codes, or a folder of PNG masks; two to compare them
    #[arg(required = true, value_name = "PREDICTIONS")]
    pub(crate) predictions: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Join the files, the parts of one run, into this one first
    #[arg(long, env = "REFSEG_MERGE_INTO", value_name = "FILE")]
    pub(crate) merge: Option<PathBuf>,
    /// Count what was answered "not found" with an empty mask; published rules do not
    #[arg(long, env = "REFSEG_BLANK_REJECTED", value_parser = FalseyValueParser::new())]
    pub(crate) blank_rejected: bool,
    /// Folder for metrics.json and report.html
    #[arg(long, env = "REFSEG_OUT", value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print metrics.json
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DataCommandArgs {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Check data sets: counts, missing pictures, faulty masks, pictures shared between splits
    Check(DataCheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataCheckArgs {
    /// The folder that holds `refer_seg`
    pub(crate) root: PathBuf,
    /// Decode every picture, not only its header
    #[arg(long, env = "REFSEG_DECODE", value_parser = FalseyValueParser::new())]
    pub(crate) decode: bool,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// How the phrases of a picture are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// As published: one prompt, in which the model reads part of the truth
    Official,
    /// All phrases of a picture in one prompt
    Joint,
    /// Each phrase on its own
    Single,
    /// One prompt, in which the model reads its own decisions
    Sequential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SplitName {
    /// Scenes to train on
    Train,
    /// The same kind of scenes, never trained on
    HeldOut,
    /// Combinations of shape and colour that no other scene has
    Unseen,
}

#[derive(Debug, Args)]
pub(crate) struct ScenesArgs {
    /// Folder to write the data set into
    pub(crate) dir: PathBuf,
    /// How many scenes of the split
    #[arg(long, env = "REFSEG_COUNT", value_name = "N")]
    pub(crate) count: usize,
    /// Which scenes
    #[arg(long, env = "REFSEG_SPLIT", default_value = "train")]
    pub(crate) split: SplitName,
    /// Besides `train`, held-out scenes for `val`
    #[arg(long, env = "REFSEG_VAL", value_name = "N", default_value = "0")]
    pub(crate) val: usize,
    /// Besides `train`, held-out scenes for `testA` and as many unseen ones for `testB`
    #[arg(long, env = "REFSEG_TEST", value_name = "N", default_value = "0")]
    pub(crate) test: usize,
    /// Index of the first scene: another one gives other scenes
    #[arg(long, env = "REFSEG_FIRST", value_name = "N", default_value = "0")]
    pub(crate) first: u64,
    /// Side of the pictures in pixels
    #[arg(long, env = "REFSEG_SIZE", value_name = "PX", default_value = "224")]
    pub(crate) size: u32,
    /// Fewest objects in a scene
    #[arg(
        long,
        env = "REFSEG_MIN_OBJECTS",
        value_name = "N",
        default_value = "3"
    )]
    pub(crate) min_objects: usize,
    /// Most objects in a scene
    #[arg(
        long,
        env = "REFSEG_MAX_OBJECTS",
        value_name = "N",
        default_value = "6"
    )]
    pub(crate) max_objects: usize,
    /// Phrases for each scene
    #[arg(long, env = "REFSEG_PHRASES", value_name = "N", default_value = "8")]
    pub(crate) phrases: usize,
    /// Replace a data set that is already there
    #[arg(long, env = "REFSEG_OVERWRITE", value_parser = FalseyValueParser::new())]
    pub(crate) overwrite: bool,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// Writes checkpoints while it goes; called again with the same settings, it
/// goes on where it was stopped.
/// Without --recipe, a small model is trained from scratch on scenes that are drawn along the
/// way. With one, a model learns from pictures with phrases.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Folder of the run; the model is written to DIR/model
    #[arg(long, env = "REFSEG_OUT", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Steps in all
    #[arg(long, env = "REFSEG_STEPS", value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Pictures a step, over all workers
    #[arg(long, env = "REFSEG_PICTURES", value_name = "N")]
    pub(crate) pictures: Option<NonZeroUsize>,
    /// Highest learning rate
    #[arg(long, env = "REFSEG_LEARNING_RATE", value_name = "RATE")]
    pub(crate) learning_rate: Option<f64>,
    /// Workers, each with its share of the threads and of the pictures
    #[arg(long, env = "REFSEG_WORKERS", value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Steps between checkpoints and evaluations
    #[arg(long, env = "REFSEG_EVERY", value_name = "N")]
    pub(crate) every: Option<std::num::NonZeroU64>,
    /// Pictures of each evaluation
    #[arg(long, env = "REFSEG_HELD_OUT", value_name = "N")]
    pub(crate) held_out: Option<NonZeroUsize>,
    /// Seed of everything random
    #[arg(long, env = "REFSEG_SEED", value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print one JSON document
    #[arg(long, env = "REFSEG_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
}

/// Options of training from scratch.
#[derive(Debug, Args)]
#[command(next_help_heading = "From scratch")]
pub(crate) struct ScratchArgs {
    /// Steps in which the vision tower learns alone what each patch shows
    #[arg(
        long,
        env = "REFSEG_SIGHT_STEPS",
        value_name = "N",
        conflicts_with = "recipe"
    )]
    pub(crate) sight_steps: Option<u64>,
    /// Phrases for each picture
    #[arg(
        long,
        env = "REFSEG_PHRASES",
        value_name = "N",
        conflicts_with = "recipe"
    )]
    pub(crate) phrases: Option<NonZeroUsize>,
    /// Phrases of each picture that are decoded to masks
    #[arg(
        long,
        env = "REFSEG_MASKS_EACH",
        value_name = "N",
        conflicts_with = "recipe"
    )]
    pub(crate) masks: Option<NonZeroUsize>,
    /// Steps of warm-up
    #[arg(
        long,
        env = "REFSEG_WARM_UP",
        value_name = "N",
        conflicts_with = "recipe"
    )]
    pub(crate) warm_up: Option<u64>,
}

/// Options of learning from pictures with phrases.
#[derive(Debug, Args)]
#[command(next_help_heading = "By recipe")]
pub(crate) struct TuningArgs {
    /// Recipe to train by: mllmseg-res, mllmseg-gres, refseg-res, refseg-gres, finetune, sam4mllm-paper, sam4mllm-code, sam4mllm-small, sam-decoder, sam-small, or a TOML file
    #[arg(long, env = "REFSEG_RECIPE", value_name = "NAME")]
    pub(crate) recipe: Option<String>,
    /// Model to start from: a folder, a checkpoint of Segment Anything, or `builtin`
    #[arg(short, long, env = "REFSEG_MODEL", default_value = "builtin")]
    pub(crate) model: PathBuf,
    /// Folder with the data sets of the recipe
    #[arg(long, env = "REFSEG_DATA", value_name = "ROOT")]
    pub(crate) data: Option<PathBuf>,
    /// Data set to learn from instead of the recipe's; several times for a mix
    #[arg(
        long = "dataset",
        env = "REFSEG_DATASET",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub(crate) datasets: Vec<Source>,
    /// Folder with a data set of the same kind to judge the model on [default: the split `val`, where there is one]
    #[arg(long, env = "REFSEG_VAL", value_name = "ROOT", requires = "recipe")]
    pub(crate) val: Option<PathBuf>,
    /// Replace a value of the recipe, such as optimiser.learning_rate=1e-4
    #[arg(
        long = "set",
        env = "REFSEG_SET",
        value_name = "KEY=VALUE",
        requires = "recipe"
    )]
    pub(crate) overrides: Vec<String>,
    /// Pass over faulty entries of the data instead of refusing to begin
    #[arg(long, env = "REFSEG_KEEP_GOING", value_parser = FalseyValueParser::new())]
    pub(crate) keep_going: bool,
    /// Show what would be trained, at what cost, and stop
    #[arg(long, env = "REFSEG_DRY_RUN", requires = "recipe", value_parser = FalseyValueParser::new())]
    pub(crate) dry_run: bool,
}

fn phrase(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("a phrase says what to look for, such as \"the red ring\"");
    }
    Ok(text.to_owned())
}

/// `sam:` and a path.
fn refiner(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("sam:").filter(|path| !path.is_empty());
    path.map(PathBuf::from)
        .ok_or_else(|| "expected `sam:` and a checkpoint, such as sam:weights/mobile_sam.pt".into())
}

fn question(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("a question says what to answer, such as \"What is this?\"");
    }
    Ok(text.to_owned())
}

/// Exactly `N` finite numbers between commas.
fn numbers<const N: usize>(text: &str) -> Result<[f64; N], String> {
    let number = |part: &str| part.trim().parse().ok().filter(|x: &f64| x.is_finite());
    let numbers: Option<Vec<f64>> = text.split(',').map(number).collect();
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| format!("expected {N} numbers with commas between them"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for option in command
                .get_opts()
                .chain(command.get_arguments().filter(|a| a.get_long().is_some()))
            {
                let name = option.get_env().and_then(|name| name.to_str());
                let is_named = name.is_some_and(|name| name.starts_with("REFSEG_"));
                assert!(is_named, "{} {}", command.get_name(), option.get_id());
            }
        }
    }
}
