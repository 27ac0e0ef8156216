//! Where the time of a forward pass goes.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use refseg_kernels::Precision;

thread_local! {
    /// What the thread has computed since [`profile`] began; nothing outside of it.
    static SPENT: RefCell<Option<HashMap<Work, Spent>>> = const { RefCell::new(None) };
}

/// Something that a layer computes, of certain sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    /// What is computed.
    pub kind: Kind,
    /// Rows, inputs and outputs of a product, a convolution's kernel counted with its inputs; queries, keys and the
    /// width of all heads; rows and width of anything else, and one.
    pub sizes: [usize; 3],
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A product with a packed weight, and what is fused with it.
    Product(Precision),
    /// A convolution with a packed kernel.
    Convolution(Precision),
    /// Scaled dot-product attention.
    Attention(Precision),
    /// A layer norm, or a root-mean-square norm.
    Norm,
    /// Softmax, GELU and the like on their own.
    Elementwise,
    /// Queries or keys turned by their positions.
    Rope,
    /// A map seen between its cells.
    Sample,
}

/// What work of one kind and size has cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// How often it was done.
    pub calls: u64,
    /// How long all of it took.
    pub time: Duration,
    /// Additions and multiplications of all of it, those of products alone.
    pub operations: f64,
    /// The least bytes that all of it has to read and write.
    pub bytes: f64,
}

/// Where time went.
#[derive(Debug, Clone)]
pub struct Profile {
    /// All of it. What is not in `work` are the tensor framework's sums and copies, and whatever is no layer: the
    /// picture, the prompt, the mask.
    pub total: Duration,
    /// What layers computed.
    pub work: HashMap<Work, Spent>,
}

/// Watches what layers compute on this thread, and on others for it, while `pass` runs.
pub fn profile<T>(pass: impl FnOnce() -> T) -> (T, Profile) {
    SPENT.set(Some(HashMap::new()));
    let start = Instant::now();
    let result = pass();
    let total = start.elapsed();
    let work = SPENT.take().unwrap_or_default();
    (result, Profile { total, work })
}

/// Runs `compute`, and notes what it cost if somebody watches.
pub(super) fn watched<T>(work: impl FnOnce() -> (Work, Cost), compute: impl FnOnce() -> T) -> T {
    if SPENT.with_borrow(Option::is_none) {
        return compute();
    }
    let start = Instant::now();
    let result = compute();
    let time = start.elapsed();
    let (work, Cost { operations, bytes }) = work();
    SPENT.with_borrow_mut(|spent| {
        if let Some(spent) = spent {
            let spent = spent.entry(work).or_default();
            spent.calls += 1;
            spent.time += time;
            spent.operations += operations;
            spent.bytes += bytes;
        }
    });
    result
}

/// What work cannot do without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Additions and multiplications.
    pub(super) operations: f64,
    /// Bytes read and written.
    pub(super) bytes: f64,
}

impl Work {
    /// Work that is bound by memory: it reads or writes every element `passes` times.
    pub(super) fn elementwise(
        kind: Kind,
        rows: usize,
        width: usize,
        passes: usize,
    ) -> (Self, Cost) {
        let work = Self {
            kind,
            sizes: [rows, width, 1],
        };
        let cost = Cost {
            operations: 0.0,
            bytes: (4 * passes * rows * width) as f64,
        };
        (work, cost)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.sizes;
        match self.kind {
            Kind::Product(precision) => write!(f, "product {a}×{b}×{c} in {precision}"),
            Kind::Convolution(precision) => write!(f, "convolution {a}×{b}×{c} in {precision}"),
            Kind::Attention(precision) => write!(f, "attention {a}×{b}×{c} in {precision}"),
            Kind::Norm => write!(f, "norm {a}×{b}"),
            Kind::Elementwise => write!(f, "activation {a}×{b}"),
            Kind::Rope => write!(f, "RoPE {a}×{b}"),
            Kind::Sample => write!(f, "sampling {a}×{b}"),
        }
    }
}
