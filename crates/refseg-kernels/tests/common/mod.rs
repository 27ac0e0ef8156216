//! Numbers for the tests, and the instruction sets that they are of.

use refseg_kernels::InstructionSet;

/// The instruction sets to test: all that this machine has, or the one that `REFSEG_CPU` names.
pub(crate) fn sets() -> Vec<InstructionSet> {
    if std::env::var_os("REFSEG_CPU").is_some_and(|name| !name.is_empty()) {
        return vec![InstructionSet::chosen().expect("a set that this machine has")];
    }
    for set in InstructionSet::ALL {
        if !set.is_available() {
            eprintln!("not run: this machine lacks {set}");
        }
    }
    InstructionSet::available()
}

/// Half a unit in the last place of 1: what one rounding adds to an f32, relatively.
pub(crate) const UNIT: f64 = 1.0 / 16_777_216.0;

/// Numbers drawn by xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }

    /// From −1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        self.below(1 << 25) as f32 / (1 << 24) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// What `n` roundings in a row add at most, relatively.
pub(crate) fn roundings(n: usize) -> f64 {
    let n = n as f64 * UNIT;
    n / (1.0 - n)
}
