//! Reproducible random numbers and the initial values of a network.

/// A stream of 64-bit numbers: SplitMix64 (Steele, Lea and Flood, 2014), the same on every platform.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

/// The increment of SplitMix64: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl SplitMix64 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The stream that belongs to a name: FNV-1a of its UTF-8 bytes, joined with `seed`.
    pub fn named(name: &str, seed: u64) -> Self {
        const BASIS: u64 = 0xCBF2_9CE4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01B3;
        let hash = name.bytes().fold(BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        Self(hash ^ seed.wrapping_mul(GOLDEN))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..1`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform in `0..bound`; `bound` must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        // Multiply and shift (Lemire, 2019): its bias is below 2⁻⁶⁴ · bound.
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Initial values of the tensor `key`, from its name and shape alone.
///
/// The mask decoder's matrices are Xavier-uniform as in the reference; other
/// matrices are normal with deviation `1/√inputs`, embedding tables with 0.1;
/// norms are 1 and 0, biases 0, LayerScale 1. The last convolution starts as
/// a sharp copy of its input below a threshold, for with a random kernel and
/// no bias the masks, of which few pixels are foreground, collapse to nothing.
pub fn initial_values(key: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let mut random = SplitMix64::named(key, seed);
    if key == "res_decoder.conv2.weight" {
        let mut kernel = vec![0.0; count];
        kernel[count / 2] = 3.0;
        return kernel;
    }
    if key == "res_decoder.conv2.bias" {
        return vec![-4.0; count];
    }
    let is_norm = [
        "norm",
        "norm1",
        "norm2",
        "norm3",
        "layernorm",
        "mlp1.0.weight",
        "conv1.1.weight",
        "running_var",
    ]
    .iter()
    .any(|name| key.ends_with(name) || key.ends_with(&format!("{name}.weight")));
    if shape.len() == 1 {
        // A weight of one dimension is a norm's.
        let value = if is_norm
            || key.ends_with(".weight")
            || key.ends_with("ls1")
            || key.ends_with("ls2")
        {
            1.0
        } else {
            0.0
        };
        return vec![value; count];
    }
    let (outputs, inputs) = (shape[0], count / shape[0]);
    if key.starts_with("res_decoder.") {
        let receptive: usize = shape[2..].iter().product();
        let reach = (6.0 / (inputs + outputs * receptive) as f64).sqrt();
        return (0..count)
            .map(|_| ((2.0 * random.uniform() - 1.0) * reach) as f32)
            .collect();
    }
    let deviation = if key.ends_with("gaussian_matrix") {
        // Segment Anything's positions: `scale` of its `PositionEmbeddingRandom`.
        1.0
    } else if key.contains("embedding") && !key.contains("patch_embedding")
        || key.contains("embed_tokens")
    {
        0.1
    } else {
        (inputs as f64).powf(-0.5)
    };
    (0..count)
        .map(|_| (random.normal() * deviation) as f32)
        .collect()
}
