//! Matrix products in f32, bf16, int16 and int8, attention, norms and their like, on a CPU.
//!
//! A weight is packed once, as [`Packed`], for the instruction set that will read it; [`Packed::multiply`] and
//! [`attention()`] share their work among the threads of rayon's current pool. Each element of a result is summed by
//! one thread, in the order of the inputs: neither the number of threads nor the other rows change a bit of it. [`peak()`]
//! says what they could reach.
//!
//! Which path runs is decided when the program runs: see [`InstructionSet`]. All intrinsics of the project are in here.

mod attention;
mod epilogue;
mod instruction_set;
pub mod math;
mod memory;
mod numbers;
mod packed;
mod packing;
mod peak;
mod precision;
mod rows;
mod strips;
mod tile;

pub use attention::{AttentionMask, AttentionShape, Heads, attention, attention_for_set};
pub use epilogue::{Activation, Epilogue};
pub use instruction_set::{CpuError, InstructionSet};
pub use numbers::{NonFinite, Numbers};
pub use packed::Packed;
pub use peak::peak;
pub use precision::Precision;
pub use rows::{Norm, lanes, moments, norm, rope, sample};
