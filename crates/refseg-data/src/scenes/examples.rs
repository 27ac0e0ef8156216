//! Drawn scenes as a data set to evaluate on.

use refseg::{Image, mask::Mask};

use super::{Scene, SceneOptions};
use crate::{
    conversations::{Described, DescribedPictures, Object, Said, answer_count},
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

impl DescribedPictures for DrawnScenes {
    fn count(&self) -> usize {
        self.count
    }

    fn described_picture(&self, picture: usize) -> Result<(String, Image, Described), DataError> {
        let scene = self.scene(picture);
        let side = scene.size as usize;
        let object = |object: &super::Object| Object {
            box_px: object.box_px.map(f64::from),
            mask: mask_of(&object.mask, side),
            groups: Vec::new(),
        };
        let said = |phrase: &super::ScenePhrase| Said {
            phrase: phrase.text.clone(),
            objects: phrase.targets.clone(),
            count: answer_count(Family::Gres),
        };
        let described = Described {
            size: (side, side),
            objects: scene.objects.iter().map(object).collect(),
            expressions: scene.phrases.iter().map(said).collect(),
        };
        Ok((self.id(picture), image_of(scene), described))
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
            let mask = mask_of(&targets, side);
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
        Ok(Example {
            id,
            image: image_of(scene),
            expressions,
        })
    }
}

fn mask_of(pixels: &[u8], side: usize) -> Mask {
    let bits = pixels.iter().map(|&bit| bit == 1).collect();
    Mask::from_bits(side, side, bits).expect("a scene's mask has its size")
}

fn image_of(scene: Scene) -> Image {
    Image::from_rgb(scene.size, scene.size, scene.pixels).expect("a scene has three bytes a pixel")
}
