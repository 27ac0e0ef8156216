//! What a step learns from: pictures, and conversations about them as tokens.

use std::ops::Range;

use refseg::{
    Image,
    chat::{Backbone, WrittenTalk},
    random::SplitMix64,
    sam::{SamPredictor, SamScene},
    sam4mllm::Method,
};
use refseg_data::conversations::{
    Described, DescribedPictures, GROUPS, GROUPS_KEPT, Turn, best_groups, draw_groups, write,
};

use super::recipe::{Order, Recipe};
use crate::{
    TrainError,
    canvas::stretched,
    draws::{self, MOST_DRAWS, choose, take, worn},
};

/// A picture and conversations about it, each of which sees the picture and itself alone.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The picture.
    pub image: Image,
    /// The conversations.
    pub talks: Vec<WrittenTalk>,
}

/// What lessons are made of.
pub struct Lessons {
    sets: Vec<(f64, Box<dyn DescribedPictures + Send>)>,
    judge: Option<SamPredictor>,
}

impl Lessons {
    /// Draws pictures from `sets` by their weights; `judge` chooses among PPG's groups of points.
    pub fn new(
        sets: Vec<(f64, Box<dyn DescribedPictures + Send>)>,
        judge: Option<SamPredictor>,
    ) -> Self {
        Self { sets, judge }
    }

    /// Pictures in all data sets.
    pub fn pictures(&self) -> usize {
        self.sets.iter().map(|(_, set)| set.count()).sum()
    }

    /// The lesson of this number. The same number gives the same lesson.
    ///
    /// # Errors
    /// If the data is at fault, or nothing can be asked about its pictures.
    pub fn draw(
        &self,
        recipe: &Recipe,
        backbone: &Backbone,
        number: u64,
    ) -> Result<Lesson, TrainError> {
        let mut random = draws::random("lesson", recipe.seed, number);
        for _ in 0..MOST_DRAWS {
            let set = choose(&self.sets, &mut random);
            let (_, image, described) = set.described_picture(random.below(set.count()))?;
            let (image, described) = stretched(image, described, recipe.data.stretch, &mut random)?;
            let talks = self.talks(recipe, backbone, &image, described, &mut random)?;
            if !talks.is_empty() {
                let image = worn(image, recipe.data.jpeg_quality, &mut random)?;
                let image = squashed(image, recipe.data.squash);
                return Ok(Lesson { image, talks });
            }
        }
        Err(TrainError::NothingToLearn)
    }

    fn talks(
        &self,
        recipe: &Recipe,
        backbone: &Backbone,
        image: &Image,
        mut described: Described,
        random: &mut SplitMix64,
    ) -> Result<Vec<WrittenTalk>, TrainError> {
        take(&mut described.expressions, recipe.talk.phrases, random);
        if recipe.talk.order == Order::LeftToRight {
            let left = |&i: &usize| described.objects[i].box_px[0];
            for said in &mut described.expressions {
                said.objects.sort_by(|a, b| left(a).total_cmp(&left(b)));
            }
        }
        let (pqpp, ppg) = (recipe.talk.pqpp, recipe.talk.ppg);
        let (by_pqpp, by_ppg): (Vec<_>, Vec<_>) = described
            .expressions
            .drain(..)
            .partition(|_| random.uniform() * (pqpp + ppg) < pqpp);
        if !by_ppg.is_empty() {
            self.group(image, &mut described, random)?;
        }
        let mut talks = Vec::new();
        for (method, expressions) in [(Method::Pqpp, by_pqpp), (Method::Ppg, by_ppg)] {
            described.expressions = expressions;
            let settings = recipe.conversations(method);
            // What cannot be encoded is found when it is written, and named there.
            let length = |turns: &[Turn]| written(backbone, turns).map_or(0, |talk| talk.ids.len());
            for turns in write(&described, &settings, random, &length).conversations {
                talks.push(written(backbone, &turns)?);
            }
        }
        take(&mut talks, recipe.talk.conversations, random);
        Ok(talks)
    }

    /// Draws PPG's groups of points, and keeps the best where there is a judge.
    fn group(
        &self,
        image: &Image,
        described: &mut Described,
        random: &mut SplitMix64,
    ) -> Result<(), TrainError> {
        let size = described.size;
        let scene = self.judge.as_ref().map(|judge| judge.encode(image));
        let scene: Option<SamScene> = scene.transpose()?;
        for object in &mut described.objects {
            object.groups = match &scene {
                None => draw_groups(object, size, GROUPS_KEPT, random),
                Some(scene) => {
                    let groups = draw_groups(object, size, GROUPS, random);
                    best_groups(object, groups, GROUPS_KEPT, |prompts| {
                        let drawn = scene.prompt_many(prompts, true)?;
                        let best = drawn.iter().map(|masks| masks.masks[masks.best()].clone());
                        Ok::<_, TrainError>(best.collect())
                    })?
                }
            };
        }
        Ok(())
    }
}

fn written(backbone: &Backbone, turns: &[Turn]) -> Result<WrittenTalk, TrainError> {
    let turns = turns.iter();
    let turns: Vec<(&str, &str)> = turns
        .map(|turn| (turn.question.as_str(), turn.answer.as_str()))
        .collect();
    Ok(backbone.write(&turns)?)
}

fn squashed(image: Image, side: Option<u32>) -> Image {
    match side {
        None => image,
        Some(side) => image.resize(side, side),
    }
}

/// Conversations of about the same length, so that little is filled up, the shortest first; each
/// comes with its picture's number.
pub(super) fn packs<'a>(talks: &[(usize, &'a WrittenTalk)]) -> Vec<Vec<(usize, &'a WrittenTalk)>> {
    let length = |(_, talk): &(usize, &WrittenTalk)| talk.ids.len();
    let mut sorted = talks.to_vec();
    sorted.sort_by_key(length);
    let mut packs: Vec<Vec<(usize, &WrittenTalk)>> = Vec::new();
    for talk in sorted {
        match packs.last_mut() {
            Some(pack) if 2 * length(&talk) <= 3 * length(&pack[0]) => pack.push(talk),
            _ => packs.push(vec![talk]),
        }
    }
    packs
}

/// All tokens that a conversation teaches to say.
pub(super) fn supervised(talk: &WrittenTalk) -> impl Iterator<Item = usize> + use<'_> {
    talk.answers.iter().cloned().flat_map(Range::into_iter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_hold_conversations_of_about_the_same_length() {
        let talk = |length: usize| WrittenTalk {
            ids: vec![0; length],
            answers: Vec::new(),
        };
        let talks = [30, 20, 31, 100, 45, 150].map(talk);
        let numbered: Vec<(usize, &WrittenTalk)> = talks.iter().enumerate().collect();
        let numbers = |pack: &Vec<(usize, _)>| pack.iter().map(|(i, _)| *i).collect::<Vec<_>>();
        let packed: Vec<Vec<usize>> = packs(&numbered).iter().map(numbers).collect();
        assert_eq!(packed, [vec![1, 0], vec![2, 4], vec![3, 5]]);
        assert!(packs(&[]).is_empty());
    }
}
