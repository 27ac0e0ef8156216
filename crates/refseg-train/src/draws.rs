//! What is drawn at random: a function of a seed and a number, so that a run that is resumed draws
//! what it would have drawn.

use refseg::{
    image::{Chroma, DecodeOptions, Image},
    random::SplitMix64,
};

use crate::TrainError;

/// Draws of pictures from which nothing can be learned, before the data is given up.
pub(crate) const MOST_DRAWS: usize = 1000;

/// Randomness of the draw of this number, among those of one kind.
pub(crate) fn random(kind: &str, seed: u64, number: u64) -> SplitMix64 {
    let mut random = SplitMix64::named(kind, seed);
    SplitMix64::new(random.next_u64() ^ number.wrapping_mul(0x9E37_79B9))
}

/// A set, by weight.
pub(crate) fn choose<'a, T: ?Sized>(sets: &'a [(f64, Box<T>)], random: &mut SplitMix64) -> &'a T {
    let total: f64 = sets.iter().map(|(weight, _)| weight).sum();
    let mut left = random.uniform() * total;
    for (weight, set) in sets {
        left -= weight;
        if left < 0.0 {
            return set;
        }
    }
    // Rounding can leave a hair behind the last.
    &sets[sets.len() - 1].1
}

/// Keeps `count` things, drawn at random.
pub(crate) fn take<T>(things: &mut Vec<T>, count: usize, random: &mut SplitMix64) {
    for i in 0..count.min(things.len()) {
        let other = i + random.below(things.len() - i);
        things.swap(i, other);
    }
    things.truncate(count);
}

/// The picture as a file of one of these qualities would have it.
pub(crate) fn worn(
    image: Image,
    qualities: Option<[u8; 2]>,
    random: &mut SplitMix64,
) -> Result<Image, TrainError> {
    let Some([low, high]) = qualities else {
        return Ok(image);
    };
    let quality = low + random.below(usize::from(high - low) + 1) as u8;
    let jpeg = image.to_jpeg(quality, Chroma::Half)?;
    let name = "a picture of the training data";
    Ok(Image::decode(&jpeg, name, &DecodeOptions::default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_keeps_each_thing_at_most_once() {
        let mut random = SplitMix64::new(3);
        let mut things: Vec<usize> = (0..10).collect();
        take(&mut things, 4, &mut random);
        things.sort_unstable();
        things.dedup();
        assert_eq!(things.len(), 4);
        take(&mut things, 9, &mut random);
        assert_eq!(things.len(), 4);
    }
}
