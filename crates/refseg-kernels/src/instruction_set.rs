//! Which instructions the kernels are made of, and which of them this machine has.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::{env, fmt, str::FromStr, sync::OnceLock};

use crate::{Precision, tile::Unit};

/// Instructions that the kernels are written for; each set has those of the sets of its architecture before it.
///
/// The instructions of [`InstructionSet::NeonDot`] and [`InstructionSet::NeonMatrix`] are written in assembly, one at a
/// time: Rust 1.95 has no stable intrinsics for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstructionSet {
    /// Plain Rust, vectorised by the compiler for what every machine of the target has: SSE2 on x86-64, NEON on
    /// AArch64.
    Portable,
    /// AVX2 and FMA: x86-64 since 2013.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// And its products of whole numbers of 8 and of 16 bits, VNNI.
    Avx512Vnni,
    /// And its products of bf16 numbers.
    Avx512Bf16,
    /// NEON, which every AArch64 has.
    Neon,
    /// And its dot products of 8-bit numbers, DotProd: Armv8.2 as most build it.
    NeonDot,
    /// And its products of small matrices of bf16 and of 8-bit numbers, BF16 and I8MM: Armv8.6.
    NeonMatrix,
}

/// The environment variable that names the set to use.
const VARIABLE: &str = "REFSEG_CPU";

impl InstructionSet {
    /// All of them, one architecture's after the other's, narrowest first.
    pub const ALL: [Self; 8] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Neon,
        Self::NeonDot,
        Self::NeonMatrix,
    ];

    /// The set that kernels use unless they are told otherwise: the one that `REFSEG_CPU` names, else the widest one.
    ///
    /// A program says at its start, by [`InstructionSet::chosen`], what is wrong with the variable; here, a name that
    /// this machine cannot follow counts as none.
    pub fn current() -> Self {
        static CURRENT: OnceLock<InstructionSet> = OnceLock::new();
        *CURRENT.get_or_init(|| Self::chosen().unwrap_or_else(|_| Self::widest()))
    }

    /// The set that the environment variable `REFSEG_CPU` names, or the widest one if it is not set.
    ///
    /// # Errors
    /// If it names no set, or one that this machine lacks.
    pub fn chosen() -> Result<Self, CpuError> {
        let Some(name) = env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(Self::widest());
        };
        let set: Self = name.to_string_lossy().parse()?;
        if set.is_available() {
            Ok(set)
        } else {
            Err(CpuError::Absent { set })
        }
    }

    /// The widest set that this machine has.
    pub fn widest() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// The sets that this machine has, narrowest first.
    pub fn available() -> Vec<Self> {
        let has = |set: &Self| set.is_available();
        Self::ALL.into_iter().filter(has).collect()
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => Self::Neon.is_available() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonMatrix => {
                Self::NeonDot.is_available()
                    && is_aarch64_feature_detected!("bf16")
                    && is_aarch64_feature_detected!("i8mm")
            }
            // Those of other architectures.
            _ => false,
        }
    }

    /// As `REFSEG_CPU` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::NeonMatrix => "neon-matrix",
        }
    }

    /// Numbers of this precision that one lane of 32 bits multiplies at once.
    pub fn products_at_once(self, precision: Precision) -> usize {
        Unit::of(precision, self).inputs()
    }

    /// Numbers that one lane of 32 bits multiplies at once in an attention of this precision.
    pub fn attention_products_at_once(self, precision: Precision) -> usize {
        Unit::of_attention(precision, self).inputs()
    }

    /// The precision that is fastest with these instructions, of those that move masks little: int8 is faster still,
    /// and moves them more.
    pub fn preferred(self) -> Precision {
        match self {
            Self::Portable | Self::Avx2 | Self::Neon | Self::NeonDot => Precision::F32,
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 | Self::NeonMatrix => {
                self.preferred_of_two_bytes()
            }
        }
    }

    /// The precision that is fastest of those that take two bytes a weight.
    pub fn preferred_of_two_bytes(self) -> Precision {
        match self {
            Self::Avx512Vnni => Precision::Int16,
            _ => Precision::Bf16,
        }
    }

    /// What computes a product with a weight of this precision, in words.
    pub fn path(self, precision: Precision) -> &'static str {
        match (precision, self) {
            (Precision::F32, Self::Portable) => "f32 products as the compiler vectorises them",
            (Precision::F32, Self::Avx2) => "f32, AVX2 and FMA",
            (Precision::F32, Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16) => "f32, AVX-512",
            (Precision::F32, Self::Neon | Self::NeonDot | Self::NeonMatrix) => "f32, NEON",
            (Precision::Bf16, Self::Portable) => "widened to f32, as the compiler vectorises it",
            (Precision::Bf16, Self::Avx2) => "widened to f32, AVX2 and FMA",
            (Precision::Bf16, Self::Avx512 | Self::Avx512Vnni) => "widened to f32, AVX-512",
            (Precision::Bf16, Self::Avx512Bf16) => "pairs of bf16, AVX512-BF16",
            (Precision::Bf16, Self::Neon | Self::NeonDot) => "widened to f32, NEON",
            (Precision::Bf16, Self::NeonMatrix) => "matrices of bf16, NEON with BF16",
            (Precision::Int16, Self::Portable) => "pairs of 16 bits, as the compiler vectorises it",
            (Precision::Int16, Self::Avx2) => "pairs of 16 bits, AVX2",
            (Precision::Int16, Self::Avx512) => "pairs of 16 bits, AVX-512",
            (Precision::Int16, Self::Avx512Vnni | Self::Avx512Bf16) => "pairs of 16 bits, VNNI",
            (Precision::Int16, Self::Neon | Self::NeonDot | Self::NeonMatrix) => {
                "pairs of 16 bits, NEON"
            }
            (Precision::Int8, Self::Portable) => {
                "widened to 16 bits, as the compiler vectorises it"
            }
            (Precision::Int8, Self::Avx2) => "widened to 16 bits, AVX2",
            (Precision::Int8, Self::Avx512) => "widened to 16 bits, AVX-512",
            (Precision::Int8, Self::Avx512Vnni | Self::Avx512Bf16) => "quads of 8 bits, VNNI",
            (Precision::Int8, Self::Neon) => "widened to 16 bits, NEON",
            (Precision::Int8, Self::NeonDot) => "quads of 8 bits, NEON with DotProd",
            (Precision::Int8, Self::NeonMatrix) => "matrices of 8 bits, NEON with I8MM",
        }
    }

    /// What attention multiplies where layers are of this precision, in words.
    pub fn attention_path(self, precision: Precision) -> &'static str {
        match Unit::of_attention(precision, self) {
            Unit::Bf16Pair => "pairs of bf16",
            Unit::ShortPair => "pairs of 16 bits",
            Unit::Float | Unit::ByteQuad | Unit::SignedQuad => "f32",
        }
    }

    /// [`InstructionSet::path`] of each precision.
    pub fn table(self) -> [(Precision, &'static str); 4] {
        Precision::ALL.map(|precision| (precision, self.path(precision)))
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for InstructionSet {
    type Err = CpuError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|set| set.name() == name)
            .ok_or_else(|| CpuError::Unknown { name: name.into() })
    }
}

/// Why the instruction set asked for cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuError {
    /// There is no set of this name.
    Unknown {
        /// What `REFSEG_CPU` says.
        name: String,
    },
    /// This machine lacks it.
    Absent {
        /// What `REFSEG_CPU` names.
        set: InstructionSet,
    },
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |sets: &[InstructionSet]| {
            sets.iter()
                .map(|set| set.name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match self {
            Self::Unknown { name } => {
                let all = names(&InstructionSet::ALL);
                write!(
                    f,
                    "{VARIABLE} is `{name}`, which is no instruction set: choose one of {all}"
                )
            }
            Self::Absent { set } => {
                let available = names(&InstructionSet::available());
                write!(
                    f,
                    "{VARIABLE} is `{set}`, which this machine lacks: it has {available}"
                )
            }
        }
    }
}

impl std::error::Error for CpuError {}

/// Compiles plain Rust for each instruction set, and calls the one for `set`.
///
/// The caller answers for it that this machine has `set`. In the body, `FUSED` says whether products and sums can be
/// fused.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name(set: $crate::InstructionSet, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain<const FUSED: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                plain::<true>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                plain::<true>($($argument),*)
            }

            debug_assert!(set.is_available());
            match set {
                // SAFETY: sets are chosen among those that this machine has.
                #[cfg(target_arch = "x86_64")]
                $crate::InstructionSet::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: sets are chosen among those that this machine has.
                #[cfg(target_arch = "x86_64")]
                $crate::InstructionSet::Avx512
                | $crate::InstructionSet::Avx512Vnni
                | $crate::InstructionSet::Avx512Bf16 => unsafe { avx512($($argument),*) },
                // All code for AArch64 has NEON and fused products.
                _ => plain::<{ cfg!(target_arch = "aarch64") }>($($argument),*),
            }
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_multiplies_as_many_numbers_at_once_as_it_can() {
        use InstructionSet::*;
        let expected = [
            (Portable, [1, 1, 2, 2], [1, 1, 1, 1]),
            (Avx2, [1, 1, 2, 2], [1, 1, 1, 1]),
            (Avx512, [1, 1, 2, 2], [1, 1, 1, 1]),
            (Avx512Vnni, [1, 1, 2, 4], [1, 1, 2, 2]),
            (Avx512Bf16, [1, 2, 2, 4], [1, 2, 2, 2]),
            (Neon, [1, 1, 2, 2], [1, 1, 1, 1]),
            (NeonDot, [1, 1, 2, 4], [1, 1, 1, 1]),
            (NeonMatrix, [1, 2, 2, 4], [1, 2, 2, 2]),
        ];
        for (set, products, attention) in expected {
            assert_eq!(
                Precision::ALL.map(|p| set.products_at_once(p)),
                products,
                "{set}"
            );
            assert_eq!(
                Precision::ALL.map(|p| set.attention_products_at_once(p)),
                attention,
                "{set}"
            );
        }
    }
}
