//! Drawn scenes as a data set to evaluate on.

use refseg::{Image, mask::Mask};

use super::{Scene, SceneOptions};
use crate::{
    dataset::{DataError, Truth},
    evaluate::{Asked, Example, Examples, Ids},
    metrics::Family,
};

/// Scenes `first..first + count`, drawn when they are asked for.
#[derive(Debug, Clone)]
pub struct DrawnScenes {
    /// How they are drawn, and which split.
    pub options: SceneOptions,
    /// The first.
    pub first: u64,
    /// How many.
    pub count: usize,
}

impl DrawnScenes {
    fn scene(&self, picture: usize) -> Scene {
        Scene::draw(&self.options, self.first + picture as u64)
    }

    fn id(&self, picture: usize) -> String {
        format!("{}", self.first + picture as u64)
    }
}

impl Examples for DrawnScenes {
    /// Some phrases have several targets, some none.
    fn family(&self) -> Family {
        Family::Gres
    }

    fn pictures(&self) -> usize {
        self.count
    }

    fn ids(&self, picture: usize) -> Result<Ids, DataError> {
        let id = self.id(picture);
        let phrases = self.scene(picture).phrases.len();
        Ok(Ids {
            expressions: (0..phrases).map(|i| format!("{id}/{i}")).collect(),
            picture: id,
        })
    }

    fn example(&self, picture: usize) -> Result<Example, DataError> {
        let scene = self.scene(picture);
        let side = scene.size as usize;
        let id = self.id(picture);
        let expressions = scene.phrases.iter().enumerate().map(|(i, phrase)| {
            let targets = scene.target_mask(&phrase.targets);
            let bits = targets.iter().map(|&bit| bit == 1).collect();
            let mask = Mask::from_bits(side, side, bits).expect("a scene's mask has its size");
            Asked {
                id: format!("{id}/{i}"),
                phrase: phrase.text.clone(),
                kind: Some(phrase.kind.name()),
                truth: Truth {
                    mask,
                    ignore: None,
                    official_box: None,
                },
            }
        });
        let expressions = expressions.collect();
        let image = Image::from_rgb(scene.size, scene.size, scene.pixels)
            .expect("a scene has three bytes a pixel");
        Ok(Example {
            id,
            image,
            expressions,
        })
    }
}
