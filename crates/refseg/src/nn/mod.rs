//! Layers that every network here is built from.
//!
//! This is the one place where a faster kernel replaces the framework's
//! without touching a model file. Letters in shapes mean the same everywhere:
//! `B` pictures, `L` tokens, `H` heads, `D` width of a token, `Q` phrases.

mod attention;
mod blueprint;
mod conv;
mod dropout;
mod inference;
mod kernels;
mod linear;
mod norm;
mod product;
mod profile;
mod rope;
mod sample;
mod stored;
mod tensors;

pub use attention::{DotProductAttention, softmax, split_heads};
pub use blueprint::{Blueprint, Part};
pub use conv::{Conv2d, ConvShape, patches};
pub use dropout::Dropout;
pub use linear::{Linear, LowRank, gelu, gelu_tanh, quick_gelu, silu};
pub use norm::{LayerNorm, RmsNorm};
pub use profile::{Kind, Profile, Spent, Work, profile};
pub use refseg_kernels::{Activation, CpuError, InstructionSet, Packed, Precision, peak};
pub use rope::Rope;
pub use sample::sample;
pub use stored::StoredTensors;
pub use tensors::{TensorSource, Tensors};
