//! A data set that was read, as what a model is asked about.

use refseg::{Image, image::DecodeOptions};

use super::{DataError, Dataset, Expression, Picture};
use crate::{
    conversations::{Described, DescribedPictures},
    evaluate::{Asked, Example, Examples, Ids},
    metrics::Family,
};

/// The reference ignores EXIF orientation, and annotations were made without it.
const AS_STORED: DecodeOptions = DecodeOptions {
    apply_orientation: false,
    max_pixels: 100_000_000,
};

impl Examples for Dataset {
    fn family(&self) -> Family {
        self.family
    }

    fn pictures(&self) -> usize {
        self.pictures.len()
    }

    fn ids(&self, picture: usize) -> Result<Ids, DataError> {
        let picture = &self.pictures[picture];
        let expressions = picture.expressions.iter();
        Ok(Ids {
            picture: picture.id.clone(),
            expressions: expressions
                .map(|expression| expression.id.clone())
                .collect(),
        })
    }

    fn example(&self, picture: usize) -> Result<Example, DataError> {
        let picture = &self.pictures[picture];
        let image = self.image(picture)?;
        let size = (image.height() as usize, image.width() as usize);
        Ok(Example {
            id: picture.id.clone(),
            expressions: self.asked_at(picture, size)?,
            image,
        })
    }

    fn asked(&self, picture: usize) -> Result<Vec<Asked>, DataError> {
        let picture = &self.pictures[picture];
        let size = match picture.size {
            Some(size) => size,
            None => {
                let image = self.image(picture)?;
                (image.height() as usize, image.width() as usize)
            }
        };
        self.asked_at(picture, size)
    }
}

impl DescribedPictures for Dataset {
    fn count(&self) -> usize {
        self.pictures.len()
    }

    fn described_picture(&self, picture: usize) -> Result<(String, Image, Described), DataError> {
        let picture = &self.pictures[picture];
        let image = self.image(picture)?;
        let size = (image.height() as usize, image.width() as usize);
        let described = self.described(picture, size)?;
        Ok((picture.id.clone(), image, described))
    }
}

impl Dataset {
    fn image(&self, picture: &Picture) -> Result<Image, DataError> {
        Ok(Image::open_with(&picture.path, &AS_STORED)?)
    }

    fn asked_at(&self, picture: &Picture, size: (usize, usize)) -> Result<Vec<Asked>, DataError> {
        let asked = |expression: &Expression| {
            Ok(Asked {
                id: expression.id.clone(),
                phrase: expression.phrase.clone(),
                kind: None,
                truth: self.truth(expression, picture, size)?,
            })
        };
        picture.expressions.iter().map(asked).collect()
    }
}
