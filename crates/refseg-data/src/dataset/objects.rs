//! What is marked in a picture, object by object, for conversations about it.

use std::collections::HashMap;

use super::{DataError, Dataset, Picture, draft::Annotation};
use crate::conversations::{Described, Object, Said, answer_count};

impl Dataset {
    /// The objects that the expressions of a picture of `size` (height, width) mean, and the
    /// expressions.
    ///
    /// An object without a stated box has the one around its mask. An object without either is
    /// left out, and so is an expression that means nothing else.
    ///
    /// # Errors
    /// As [`Dataset::truth`].
    pub fn described(
        &self,
        picture: &Picture,
        size: (usize, usize),
    ) -> Result<Described, DataError> {
        picture.check_size(size)?;
        let mut objects = Vec::new();
        let mut expressions = Vec::new();
        // Where each annotation has gone.
        let mut places: HashMap<u32, Option<usize>> = HashMap::new();
        for expression in &picture.expressions {
            let mut meant = Vec::new();
            for (&index, annotation) in expression.truth.iter().zip(self.annotations(expression)?) {
                let place = match places.get(&index) {
                    Some(&place) => place,
                    None => {
                        let object = self.object(annotation, size)?;
                        let place = object.is_some().then_some(objects.len());
                        objects.extend(object);
                        places.insert(index, place);
                        place
                    }
                };
                meant.extend(place);
            }
            if !meant.is_empty() || expression.truth.is_empty() {
                expressions.push(Said {
                    phrase: expression.phrase.clone(),
                    objects: meant,
                    count: answer_count(self.family),
                });
            }
        }
        Ok(Described {
            size,
            objects,
            expressions,
        })
    }

    fn object(
        &self,
        annotation: &Annotation,
        size: (usize, usize),
    ) -> Result<Option<Object>, DataError> {
        let region = annotation.region.rasterise(size, self.whole_polygons_only);
        let mask = region.map_err(|error| annotation.error(error, size))?.mask;
        let around = || Some(mask.bounds()?.map(f64::from));
        let corners = |[x, y, width, height]: [f64; 4]| [x, y, x + width, y + height];
        let box_px = annotation.bbox.map(corners).or_else(around);
        Ok(box_px.map(|box_px| Object {
            box_px,
            mask,
            groups: Vec::new(),
        }))
    }
}
