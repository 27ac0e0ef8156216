//! Phrases about a scene: drawn as a [`Query`], judged against every object,
//! and only then put into words.
//!
//! Each query is judged twice. [`matches()`] finds what it clearly means,
//! [`could_match`] what a person might mean by it; a phrase is used only when
//! the two agree, so a near tie between two "leftmost" objects, or a square
//! that is hardly above a star, is never asked about.

use super::draw::{Colour, Object, Random, Scale, Shape, Split, Texture, is_held_back};

/// A phrase and what it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenePhrase {
    /// Lower-case English without punctuation.
    pub text: String,
    /// What is asked for.
    pub kind: PhraseKind,
    /// Indices of the objects meant, ascending; empty for
    /// [`PhraseKind::None`].
    pub targets: Vec<usize>,
    /// The meaning of `text`.
    pub query: Query,
}

/// Kinds of phrases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PhraseKind {
    /// One object by its attributes: "the small red ring".
    Attribute,
    /// One object by comparison or order: "the second star from the left".
    Superlative,
    /// One object by where it lies: "the square below the green cross".
    Relation,
    /// Two objects or more: "all blue circles".
    Several,
    /// Nothing in the scene.
    None,
}

impl PhraseKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Attribute,
        Self::Superlative,
        Self::Relation,
        Self::Several,
        Self::None,
    ];

    /// The kind in lower case, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attribute => "attribute",
            Self::Superlative => "superlative",
            Self::Relation => "relation",
            Self::Several => "several",
            Self::None => "none",
        }
    }

    /// Wanted share of all phrases, in percent.
    fn share(self) -> usize {
        match self {
            Self::Attribute => 35,
            Self::Superlative | Self::Relation | Self::Several => 15,
            Self::None => 20,
        }
    }

    fn draw(random: &mut Random) -> Self {
        let mut left = random.below(100);
        for kind in Self::ALL {
            if left < kind.share() {
                return kind;
            }
            left -= kind.share();
        }
        Self::None
    }
}

/// The meaning of a phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// Every object that fits.
    Every(Description),
    /// The one object that fits the first and the one that fits the second.
    Both(Description, Description),
    /// The object that exceeds all others that fit.
    Extreme {
        /// Among which objects.
        of: Description,
        /// In what.
        by: Superlative,
    },
    /// The `rank`-th object that fits, counted from 1 and from a side.
    Ranked {
        /// Among which objects.
        of: Description,
        /// 2 or 3 in phrases.
        rank: usize,
        /// Where the count begins.
        from: Side,
    },
    /// The objects that fit and lie on one side of the only object that fits
    /// the anchor.
    Related {
        /// What is meant.
        target: Description,
        /// `Left` stands for "left of", `Top` for "above".
        side: Side,
        /// What it is compared with.
        anchor: Description,
    },
}

/// Attributes that an object must have; `None` fits any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Description {
    pub shape: Option<Shape>,
    pub colour: Option<Colour>,
    pub scale: Option<Scale>,
    pub texture: Option<Texture>,
}

impl Description {
    /// Whether the object has all the attributes.
    pub fn fits(&self, object: &Object) -> bool {
        self.shape.is_none_or(|shape| shape == object.shape)
            && self.colour.is_none_or(|colour| colour == object.colour)
            && self.scale.is_none_or(|scale| scale == object.scale)
            && self.texture.is_none_or(|texture| texture == object.texture)
    }

    /// The object's attributes that `parts` names.
    fn of(object: &Object, parts: Parts) -> Self {
        Self {
            shape: parts.contains(&Part::Shape).then_some(object.shape),
            colour: parts.contains(&Part::Colour).then_some(object.colour),
            scale: parts.contains(&Part::Scale).then_some(object.scale),
            texture: parts.contains(&Part::Texture).then_some(object.texture),
        }
    }

    fn is_held_back(&self) -> bool {
        matches!((self.shape, self.colour), (Some(shape), Some(colour)) if is_held_back(shape, colour))
    }

    fn count(&self, objects: &[Object]) -> usize {
        objects.iter().filter(|object| self.fits(object)).count()
    }
}

/// What makes an object stand out from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Superlative {
    /// By radius and area.
    Largest,
    /// By radius and area.
    Smallest,
    /// Furthest to this side: "leftmost", "topmost".
    Outermost(Side),
}

/// A side of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Side {
    Left,
    Right,
    Top,
    Bottom,
}

impl Side {
    /// All sides.
    pub const ALL: [Self; 4] = [Self::Left, Self::Right, Self::Top, Self::Bottom];

    fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Top => "top",
            Self::Bottom => "bottom",
        }
    }

    /// Distance of the object's centre from this side, up to a constant, and
    /// its position along the other axis.
    fn distance(self, object: &Object) -> (f32, f32) {
        let (x, y) = object.centre_px;
        match self {
            Self::Left => (x, y),
            Self::Right => (-x, y),
            Self::Top => (y, x),
            Self::Bottom => (-y, x),
        }
    }
}

/// Indices of the objects that the query clearly means, ascending.
///
/// Comparisons want a margin. Without one, or when an anchor is not unique,
/// nothing is meant clearly.
pub fn matches(query: &Query, objects: &[Object]) -> Vec<usize> {
    judge(query, objects).clear
}

/// Indices of the objects that the query might mean, however doubtful: a
/// superset of [`matches()`]. A query with no clear and no possible match truly
/// refers to nothing.
pub fn could_match(query: &Query, objects: &[Object]) -> Vec<usize> {
    judge(query, objects).possible
}

/// The words that phrases are made of, in alphabetical order.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = FUNCTION_WORDS.to_vec();
    words.extend(Shape::ALL.map(Shape::name));
    words.extend(Shape::ALL.map(Shape::plural));
    words.extend(Colour::ALL.map(Colour::name));
    words.extend([Scale::Small, Scale::Large].map(Scale::name));
    words.extend(Texture::ALL.map(Texture::name));
    words.sort_unstable();
    words
}

const FUNCTION_WORDS: [&str; 34] = [
    "above",
    "all",
    "and",
    "are",
    "below",
    "big",
    "biggest",
    "bottom",
    "bottommost",
    "dots",
    "every",
    "from",
    "is",
    "largest",
    "left",
    "leftmost",
    "object",
    "objects",
    "of",
    "right",
    "rightmost",
    "second",
    "shape",
    "shapes",
    "smallest",
    "stripes",
    "that",
    "the",
    "third",
    "to",
    "top",
    "topmost",
    "under",
    "with",
];

/// Draws `count` distinct phrases; fewer only if the scene gives no more.
///
/// One of them at least is an attribute phrase, and in the unseen split one
/// names a held-back combination that is there. In the other splits no phrase
/// names one.
pub(super) fn phrases_about(
    objects: &[Object],
    split: Split,
    count: usize,
    random: &mut Random,
) -> Vec<ScenePhrase> {
    let mut kinds: Vec<PhraseKind> = (0..count).map(|_| PhraseKind::draw(random)).collect();
    if !kinds.contains(&PhraseKind::Attribute) && count > 0 {
        kinds[random.below(count)] = PhraseKind::Attribute;
    }
    let mut author = Author {
        objects,
        split,
        // The first attribute phrase is where the unseen split keeps its word.
        owes_held_back: split == Split::Unseen,
        phrases: Vec::with_capacity(count),
    };
    for kind in kinds {
        if author.add(kind, random) {
            continue;
        }
        // This scene has no (more) phrases of the kind: any other will do.
        for _ in 0..8 {
            if author.add(PhraseKind::draw(random), random) {
                break;
            }
        }
    }
    author.phrases
}

/// Proposals for one phrase before its kind is given up.
const TRIES: usize = 160;
/// Of these, the proposals that must be of the more telling sort.
const TELLING_TRIES: usize = 120;

/// A superlative by size wants this ratio between the first and the second, in
/// radius and in the root of the area.
const SIZE_RATIO: f32 = 1.2;
/// A superlative by position, and order, want this distance along the axis, in
/// sums of the two radii.
const ORDER_GAP: f32 = 0.3;
/// "Left of" wants this distance along the axis, in sums of the two radii...
const RELATION_GAP: f32 = 0.5;
/// ...and this share of the distance along the other axis.
const RELATION_SLOPE: f32 = 0.5;

struct Judgement {
    clear: Vec<usize>,
    possible: Vec<usize>,
}

fn judge(query: &Query, objects: &[Object]) -> Judgement {
    let fitting = |description: &Description| -> Vec<usize> {
        (0..objects.len())
            .filter(|&index| description.fits(&objects[index]))
            .collect()
    };
    let select = |from: &[usize], accept: &dyn Fn(usize) -> bool| -> Vec<usize> {
        from.iter()
            .copied()
            .filter(|&index| accept(index))
            .collect()
    };
    match query {
        Query::Every(description) => {
            let all = fitting(description);
            Judgement {
                clear: all.clone(),
                possible: all,
            }
        }
        Query::Both(first, second) => {
            let (first, second) = (fitting(first), fitting(second));
            let mut possible = [first.as_slice(), &second].concat();
            possible.sort_unstable();
            possible.dedup();
            let clear = if first.len() == 1 && second.len() == 1 && first != second {
                possible.clone()
            } else {
                Vec::new()
            };
            Judgement { clear, possible }
        }
        Query::Extreme { of, by } => {
            let rivals = fitting(of);
            let beats = |a: usize, b: usize| exceeds(*by, &objects[a], &objects[b]);
            Judgement {
                clear: select(&rivals, &|a| rivals.iter().all(|&b| a == b || beats(a, b))),
                possible: select(&rivals, &|a| !rivals.iter().any(|&b| beats(b, a))),
            }
        }
        Query::Ranked { of, rank, from } => {
            let rivals = fitting(of);
            let by = Superlative::Outermost(*from);
            let beats = |a: usize, b: usize| exceeds(by, &objects[a], &objects[b]);
            let ahead = |a: usize| rivals.iter().filter(|&&b| beats(b, a)).count();
            let behind = |a: usize| rivals.iter().filter(|&&b| beats(a, b)).count();
            let rank_from_0 = rank.saturating_sub(1);
            let behind_wanted = rivals.len().checked_sub(rank_from_0 + 1);
            Judgement {
                clear: select(&rivals, &|a| {
                    ahead(a) == rank_from_0 && Some(behind(a)) == behind_wanted
                }),
                possible: select(&rivals, &|a| {
                    ahead(a) <= rank_from_0 && behind_wanted.is_some_and(|most| behind(a) <= most)
                }),
            }
        }
        Query::Related {
            target,
            side,
            anchor,
        } => {
            let (targets, anchors) = (fitting(target), fitting(anchor));
            let possible = select(&targets, &|a| {
                anchors
                    .iter()
                    .any(|&b| a != b && lies(*side, &objects[a], &objects[b]) > Lies::No)
            });
            let clear = match anchors[..] {
                [anchor] => select(&targets, &|a| {
                    a != anchor && lies(*side, &objects[a], &objects[anchor]) == Lies::Clearly
                }),
                _ => Vec::new(),
            };
            Judgement { clear, possible }
        }
    }
}

/// Whether `a` exceeds `b` by the margin.
fn exceeds(by: Superlative, a: &Object, b: &Object) -> bool {
    match by {
        Superlative::Largest => {
            a.radius_px >= SIZE_RATIO * b.radius_px
                && a.area as f32 >= SIZE_RATIO * SIZE_RATIO * b.area as f32
        }
        Superlative::Smallest => exceeds(Superlative::Largest, b, a),
        Superlative::Outermost(side) => {
            let gap = side.distance(b).0 - side.distance(a).0;
            // The outer edges must agree with the centres.
            gap >= ORDER_GAP * (a.radius_px + b.radius_px) && gap + a.radius_px > b.radius_px
        }
    }
}

#[derive(PartialEq, PartialOrd)]
enum Lies {
    No,
    Perhaps,
    Clearly,
}

/// Whether `a` lies on this side of `b`.
fn lies(side: Side, a: &Object, b: &Object) -> Lies {
    let ((a_along, a_across), (b_along, b_across)) = (side.distance(a), side.distance(b));
    let gap = b_along - a_along;
    let wanted = (RELATION_GAP * (a.radius_px + b.radius_px))
        .max(RELATION_SLOPE * (b_across - a_across).abs());
    if gap >= wanted {
        Lies::Clearly
    } else if gap > 0.0 {
        Lies::Perhaps
    } else {
        Lies::No
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Shape,
    Colour,
    Scale,
    Texture,
}

/// Attributes that a description names.
type Parts = &'static [Part];

/// Ways to describe a single object; repeated ones are drawn more often.
const ONE: [Parts; 13] = [
    &[Part::Shape],
    &[Part::Shape],
    &[Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Scale],
    &[Part::Shape, Part::Scale],
    &[Part::Colour, Part::Scale],
    &[Part::Shape, Part::Colour, Part::Scale],
    &[Part::Shape, Part::Colour, Part::Scale],
    &[Part::Shape, Part::Texture],
];
/// Ways to describe an object by its texture too, for objects that have one.
const ONE_TEXTURED: [Parts; 4] = [
    &[Part::Texture],
    &[Part::Shape, Part::Texture],
    &[Part::Colour, Part::Texture],
    &[Part::Shape, Part::Colour, Part::Texture],
];
/// Ways to describe rivals in a comparison, and the target of a relation.
const RIVALS: [Parts; 7] = [
    &[],
    &[],
    &[Part::Shape],
    &[Part::Shape],
    &[Part::Shape],
    &[Part::Colour],
    &[Part::Shape, Part::Colour],
];
/// Ways to describe an anchor.
const ANCHOR: [Parts; 4] = [
    &[Part::Shape],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Scale],
];
/// Ways to describe several objects.
const MANY: [Parts; 12] = [
    &[],
    &[Part::Shape],
    &[Part::Shape],
    &[Part::Shape],
    &[Part::Colour],
    &[Part::Colour],
    &[Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Shape, Part::Colour],
    &[Part::Scale],
    &[Part::Shape, Part::Scale],
    &[Part::Colour, Part::Scale],
];

/// Finds phrases for one scene.
struct Author<'a> {
    objects: &'a [Object],
    split: Split,
    owes_held_back: bool,
    phrases: Vec<ScenePhrase>,
}

impl Author<'_> {
    /// Adds one phrase of the kind; false if none was found.
    fn add(&mut self, kind: PhraseKind, random: &mut Random) -> bool {
        for attempt in 0..TRIES {
            let Some(query) = self.propose(kind, attempt, random) else {
                continue;
            };
            let names_held_back = query.descriptions().any(|one| one.is_held_back());
            if names_held_back && self.split != Split::Unseen {
                continue;
            }
            let Judgement { clear, possible } = judge(&query, self.objects);
            let counts = match kind {
                PhraseKind::Attribute | PhraseKind::Superlative | PhraseKind::Relation => {
                    clear.len() == 1
                }
                PhraseKind::Several => clear.len() >= 2,
                PhraseKind::None => clear.is_empty(),
            };
            if !counts || clear != possible {
                continue;
            }
            if self.phrases.iter().any(|phrase| phrase.query == query) {
                continue;
            }
            let text = query.words(kind, random);
            if self.phrases.iter().any(|phrase| phrase.text == text) {
                continue;
            }
            if kind == PhraseKind::Attribute && names_held_back {
                self.owes_held_back = false;
            }
            self.phrases.push(ScenePhrase {
                text,
                kind,
                targets: clear,
                query,
            });
            return true;
        }
        false
    }

    fn propose(&self, kind: PhraseKind, attempt: usize, random: &mut Random) -> Option<Query> {
        match kind {
            PhraseKind::Attribute => self.propose_attribute(random),
            PhraseKind::Superlative => self.propose_superlative(random),
            PhraseKind::Relation => self.propose_relation(attempt < TELLING_TRIES, random),
            PhraseKind::Several => self.propose_several(attempt < TELLING_TRIES, random),
            PhraseKind::None => self.propose_none(random),
        }
    }

    fn any_object(&self, random: &mut Random) -> Option<&Object> {
        let count = self.objects.len();
        (count > 0).then(|| &self.objects[random.below(count)])
    }

    fn propose_attribute(&self, random: &mut Random) -> Option<Query> {
        let object = self.any_object(random)?;
        let ways: &[Parts] = if object.texture != Texture::Plain && random.chance(0.5) {
            &ONE_TEXTURED
        } else {
            &ONE
        };
        let description = Description::of(object, random.pick(ways));
        if self.owes_held_back && !description.is_held_back() {
            return None;
        }
        Some(Query::Every(description))
    }

    fn propose_superlative(&self, random: &mut Random) -> Option<Query> {
        let of = Description::of(self.any_object(random)?, random.pick(&RIVALS));
        let rivals = of.count(self.objects);
        if random.chance(0.35) {
            let rank = 2 + random.below(2);
            let from = random.pick(&Side::ALL);
            return (rivals >= rank).then_some(Query::Ranked { of, rank, from });
        }
        let by = match random.below(8) {
            0 | 1 => Superlative::Largest,
            2 | 3 => Superlative::Smallest,
            side => Superlative::Outermost(Side::ALL[side - 4]),
        };
        (rivals >= 2).then_some(Query::Extreme { of, by })
    }

    /// With `needed`, the target's description alone must fit two objects or
    /// more besides the anchor.
    fn propose_relation(&self, needed: bool, random: &mut Random) -> Option<Query> {
        let target = Description::of(self.any_object(random)?, random.pick(&RIVALS));
        let anchor_object = self.any_object(random)?;
        let anchor = Description::of(anchor_object, random.pick(&ANCHOR));
        let side = random.pick(&Side::ALL);
        let rivals = target.count(self.objects) - usize::from(target.fits(anchor_object));
        (target != anchor && rivals >= if needed { 2 } else { 1 }).then_some(Query::Related {
            target,
            side,
            anchor,
        })
    }

    fn propose_several(&self, telling: bool, random: &mut Random) -> Option<Query> {
        if telling && random.chance(0.85) {
            let description = Description::of(self.any_object(random)?, random.pick(&MANY));
            return Some(Query::Every(description));
        }
        let first = Description::of(self.any_object(random)?, random.pick(&ANCHOR));
        let second = Description::of(self.any_object(random)?, random.pick(&ANCHOR));
        Some(Query::Both(first, second))
    }

    /// Mostly near misses: what is asked for differs from something in the
    /// scene by one attribute or by its place.
    fn propose_none(&self, random: &mut Random) -> Option<Query> {
        match random.below(20) {
            // The shape of one object in the colour of another.
            0..8 => {
                let mut description =
                    Description::of(self.any_object(random)?, &[Part::Shape, Part::Colour]);
                description.colour = Some(self.any_object(random)?.colour);
                if random.chance(0.2) {
                    description.scale = Some(self.any_object(random)?.scale);
                }
                Some(Query::Every(description))
            }
            // One attribute changed.
            8..14 => {
                let object = self.any_object(random)?;
                let mut description = Description::of(object, random.pick(&ONE));
                change_one(&mut description, random);
                Some(Query::Every(description))
            }
            // A place where nothing lies, or beside something that is not there.
            14..18 => {
                let mut query = self.propose_relation(false, random)?;
                let Query::Related { anchor, .. } = &mut query else {
                    return None;
                };
                if random.chance(0.3) {
                    change_one(anchor, random);
                }
                (anchor.count(self.objects) <= 1).then_some(query)
            }
            // Comparison among objects of which there are none or too few.
            _ => {
                let mut of = Description::of(self.any_object(random)?, random.pick(&RIVALS));
                if random.chance(0.5) {
                    let rank = 2 + random.below(2);
                    let from = random.pick(&Side::ALL);
                    return Some(Query::Ranked { of, rank, from });
                }
                change_one(&mut of, random);
                let by = match random.below(3) {
                    0 => Superlative::Largest,
                    1 => Superlative::Smallest,
                    _ => Superlative::Outermost(random.pick(&Side::ALL)),
                };
                Some(Query::Extreme { of, by })
            }
        }
    }
}

/// Replaces one of the attributes that the description names.
fn change_one(description: &mut Description, random: &mut Random) {
    match random.below(3) {
        0 if description.shape.is_some() => description.shape = Some(random.pick(&Shape::ALL)),
        1 if description.colour.is_some() => {
            description.colour = Some(random.pick(&Colour::ALL));
        }
        _ => match (description.scale, description.texture) {
            (Some(Scale::Small), _) => description.scale = Some(Scale::Large),
            (Some(Scale::Large), _) => description.scale = Some(Scale::Small),
            (_, Some(_)) => description.texture = Some(random.pick(&Texture::ALL)),
            _ => description.shape = Some(random.pick(&Shape::ALL)),
        },
    }
}

impl Query {
    fn descriptions(&self) -> impl Iterator<Item = Description> {
        let (first, second) = match *self {
            Self::Every(one) | Self::Extreme { of: one, .. } | Self::Ranked { of: one, .. } => {
                (one, None)
            }
            Self::Both(first, second) => (first, Some(second)),
            Self::Related { target, anchor, .. } => (target, Some(anchor)),
        };
        std::iter::once(first).chain(second)
    }

    /// Puts the query into words; the kind decides between singular and
    /// plural.
    fn words(&self, kind: PhraseKind, random: &mut Random) -> String {
        let the = |random: &mut Random| if random.chance(0.8) { "the " } else { "" };
        match self {
            Self::Every(description) => {
                let plural = match kind {
                    PhraseKind::Several => true,
                    PhraseKind::None => random.chance(0.25),
                    _ => false,
                };
                if !plural {
                    return the(random).to_owned() + &description.words(Number::One, random);
                }
                match random.below(10) {
                    0..4 => "all ".to_owned() + &description.words(Number::Many, random),
                    4..7 => "the ".to_owned() + &description.words(Number::Many, random),
                    7 => "all the ".to_owned() + &description.words(Number::Many, random),
                    _ => "every ".to_owned() + &description.words(Number::One, random),
                }
            }
            Self::Both(first, second) => format!(
                "the {} and the {}",
                first.plain_words(Number::One, random),
                second.plain_words(Number::One, random)
            ),
            Self::Extreme { of, by } => {
                let superlative = match by {
                    Superlative::Largest if random.chance(0.35) => "biggest",
                    Superlative::Largest => "largest",
                    Superlative::Smallest => "smallest",
                    Superlative::Outermost(Side::Left) => "leftmost",
                    Superlative::Outermost(Side::Right) => "rightmost",
                    Superlative::Outermost(Side::Top) => "topmost",
                    Superlative::Outermost(Side::Bottom) => "bottommost",
                };
                let noun = of.plain_words(Number::One, random);
                format!("{}{superlative} {noun}", the(random))
            }
            Self::Ranked { of, rank, from } => {
                let ordinal = if *rank == 2 { "second" } else { "third" };
                let noun = of.plain_words(Number::One, random);
                let side = from.name();
                format!("{}{ordinal} {noun} from the {side}", the(random))
            }
            Self::Related {
                target,
                side,
                anchor,
            } => {
                let place = match side {
                    Side::Left if random.chance(0.4) => "to the left of",
                    Side::Left => "left of",
                    Side::Right if random.chance(0.4) => "to the right of",
                    Side::Right => "right of",
                    Side::Top => "above",
                    Side::Bottom if random.chance(0.3) => "under",
                    Side::Bottom => "below",
                };
                let target = target.plain_words(Number::One, random);
                let that_is = if random.chance(0.1) { "that is " } else { "" };
                let anchor = anchor.plain_words(Number::One, random);
                format!("{}{target} {that_is}{place} the {anchor}", the(random))
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    One,
    Many,
}

impl Description {
    /// Adjectives and noun, now and then with a clause: "small ring that is
    /// red", "circle with dots".
    fn words(&self, number: Number, random: &mut Random) -> String {
        let marks = match self.texture {
            Some(Texture::Striped) => Some("stripes"),
            Some(Texture::Dotted) => Some("dots"),
            _ => None,
        };
        if let Some(marks) = marks
            && random.chance(0.3)
        {
            let rest = Self {
                texture: None,
                ..*self
            };
            return format!("{} with {marks}", rest.plain_words(number, random));
        }
        if let Some(colour) = self.colour
            && self.shape.is_some()
            && random.chance(0.12)
        {
            let rest = Self {
                colour: None,
                ..*self
            };
            let verb = if number == Number::One { "is" } else { "are" };
            let noun = rest.plain_words(number, random);
            return format!("{noun} that {verb} {}", colour.name());
        }
        self.plain_words(number, random)
    }

    /// Adjectives and noun: "small red ring".
    fn plain_words(&self, number: Number, random: &mut Random) -> String {
        let mut words = Vec::with_capacity(4);
        match self.scale {
            Some(Scale::Large) if random.chance(0.3) => words.push("big"),
            Some(scale) => words.push(scale.name()),
            None => {}
        }
        words.extend(self.texture.map(Texture::name));
        words.extend(self.colour.map(Colour::name));
        words.push(match (self.shape, number) {
            (Some(shape), Number::One) => shape.name(),
            (Some(shape), Number::Many) => shape.plural(),
            (None, Number::One) if random.chance(0.3) => "shape",
            (None, Number::Many) if random.chance(0.3) => "shapes",
            (None, Number::One) => "object",
            (None, Number::Many) => "objects",
        });
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap, HashSet};

    use super::super::draw::{Scene, SceneOptions};
    use super::*;

    fn scenes(split: Split, count: u64) -> impl Iterator<Item = Scene> {
        let options = SceneOptions {
            size: 112,
            split,
            ..SceneOptions::default()
        };
        (0..count).map(move |index| Scene::draw(&options, index))
    }

    /// An object as a reader of the text sees it: words and a box, nothing of
    /// the generator's own judgement.
    struct Seen {
        words: Vec<&'static str>,
        centre: (f32, f32),
        box_px: [f32; 4],
        area: u32,
    }

    fn see(object: &Object) -> Seen {
        let mut words = vec![
            object.shape.name(),
            object.shape.plural(),
            object.colour.name(),
            object.scale.name(),
            object.texture.name(),
            "object",
            "objects",
            "shape",
            "shapes",
        ];
        match object.texture {
            Texture::Striped => words.push("stripes"),
            Texture::Dotted => words.push("dots"),
            Texture::Plain => {}
        }
        if object.scale == Scale::Large {
            words.push("big");
        }
        Seen {
            words,
            centre: object.centre_px,
            box_px: object.box_px,
            area: object.area,
        }
    }

    /// Reads the text as a person would and compares boxes without margins.
    fn read(text: &str, objects: &[Seen]) -> Vec<usize> {
        const FILLERS: [&str; 8] = ["the", "all", "every", "that", "is", "are", "with", "to"];
        let fitting = |words: &[&str]| -> Vec<usize> {
            (0..objects.len())
                .filter(|&index| {
                    words
                        .iter()
                        .all(|word| FILLERS.contains(word) || objects[index].words.contains(word))
                })
                .collect()
        };
        let words: Vec<&str> = text.split(' ').collect();
        let find = |word: &str| words.iter().position(|&other| other == word);
        let key = |word: &str, index: usize| -> f32 {
            let object = &objects[index];
            match word {
                "leftmost" | "left" => object.centre.0,
                "rightmost" | "right" => -object.centre.0,
                "topmost" | "top" | "above" => object.centre.1,
                "bottommost" | "bottom" | "below" | "under" => -object.centre.1,
                "largest" | "biggest" => -(object.area as f32),
                "smallest" => object.area as f32,
                other => panic!("no order by {other}"),
            }
        };
        if let Some(at) = find("and") {
            return [fitting(&words[..at]), fitting(&words[at + 1..])].concat();
        }
        if let Some(at) = find("second").or(find("third")) {
            let from = find("from").unwrap();
            let mut rivals = fitting(&words[at + 1..from]);
            rivals.sort_by(|&a, &b| key(words[from + 2], a).total_cmp(&key(words[from + 2], b)));
            let rank = if words[at] == "second" { 1 } else { 2 };
            return rivals.get(rank).copied().into_iter().collect();
        }
        if let Some(at) = words
            .iter()
            .position(|word| word.len() > 3 && word.ends_with("st"))
        {
            let rivals = fitting(&words[at + 1..]);
            return rivals
                .into_iter()
                .min_by(|&a, &b| key(words[at], a).total_cmp(&key(words[at], b)))
                .into_iter()
                .collect();
        }
        let places = ["left", "right", "above", "below", "under"];
        if let Some(at) = words.iter().position(|word| places.contains(word)) {
            let rest = if words[at + 1] == "of" {
                at + 2
            } else {
                at + 1
            };
            let mut targets = fitting(&words[..at]);
            let anchors = fitting(&words[rest..]);
            assert!(
                anchors.len() <= 1 || targets.is_empty(),
                "{text}: anchors {anchors:?}"
            );
            targets.retain(|&target| {
                anchors.iter().any(|&anchor| {
                    target != anchor && key(words[at], target) < key(words[at], anchor)
                })
            });
            return targets;
        }
        fitting(&words)
    }

    #[test]
    fn every_phrase_is_true_when_read_independently() {
        for split in Split::ALL {
            for (number, scene) in scenes(split, 500).enumerate() {
                let seen: Vec<Seen> = scene.objects.iter().map(see).collect();
                for phrase in &scene.phrases {
                    let mut found = read(&phrase.text, &seen);
                    found.sort_unstable();
                    if phrase.kind == PhraseKind::None
                        && let Query::Related { anchor, .. } = &phrase.query
                        && anchor.count(&scene.objects) > 1
                    {
                        panic!("anchor of `{}` is not unique", phrase.text);
                    }
                    assert_eq!(
                        found, phrase.targets,
                        "{split:?} {number}: `{}`",
                        phrase.text
                    );
                    assert_eq!(found, matches(&phrase.query, &scene.objects));
                    assert_eq!(found, could_match(&phrase.query, &scene.objects));
                    let expected = match phrase.kind {
                        PhraseKind::None => 0..1,
                        PhraseKind::Several => 2..13,
                        _ => 1..2,
                    };
                    assert!(expected.contains(&found.len()), "{}", phrase.text);
                }
            }
        }
    }

    #[test]
    fn positions_leave_room_in_the_boxes_too() {
        for scene in scenes(Split::Train, 500) {
            let seen: Vec<Seen> = scene.objects.iter().map(see).collect();
            for phrase in &scene.phrases {
                let Query::Extreme { of, by } = phrase.query else {
                    continue;
                };
                if phrase.kind == PhraseKind::None {
                    continue;
                }
                for (index, other) in seen.iter().enumerate() {
                    if index == phrase.targets[0] || !of.fits(&scene.objects[index]) {
                        continue;
                    }
                    let target = &seen[phrase.targets[0]];
                    let [left, top, right, bottom] = target.box_px;
                    let [l, t, r, b] = other.box_px;
                    let clear = match by {
                        Superlative::Largest => target.area as f32 > 1.3 * other.area as f32,
                        Superlative::Smallest => other.area as f32 > 1.3 * target.area as f32,
                        Superlative::Outermost(Side::Left) => left + right + 3.0 < l + r,
                        Superlative::Outermost(Side::Right) => left + right > l + r + 3.0,
                        Superlative::Outermost(Side::Top) => top + bottom + 3.0 < t + b,
                        Superlative::Outermost(Side::Bottom) => top + bottom > t + b + 3.0,
                    };
                    assert!(clear, "{}", phrase.text);
                }
            }
        }
    }

    #[test]
    fn shares_are_near_those_wanted() {
        let mut counts: HashMap<PhraseKind, usize> = HashMap::new();
        let mut total = 0;
        for scene in scenes(Split::Train, 600) {
            assert_eq!(scene.phrases.len(), 8);
            let texts: HashSet<&str> = scene.phrases.iter().map(|p| p.text.as_str()).collect();
            assert_eq!(texts.len(), 8);
            assert!(
                scene
                    .phrases
                    .iter()
                    .any(|p| p.kind == PhraseKind::Attribute)
            );
            for phrase in &scene.phrases {
                *counts.entry(phrase.kind).or_default() += 1;
                total += 1;
            }
        }
        for kind in PhraseKind::ALL {
            let percent = counts[&kind] as f32 * 100.0 / total as f32;
            assert!(
                (percent - kind.share() as f32).abs() < 3.0,
                "{kind:?}: {percent} %"
            );
        }
    }

    #[test]
    fn relations_are_mostly_needed_and_absences_near_misses() {
        let (mut needed, mut relations) = (0, 0);
        let (mut near, mut absences) = (0, 0);
        for scene in scenes(Split::Train, 500) {
            for phrase in &scene.phrases {
                match (phrase.kind, &phrase.query) {
                    (PhraseKind::Relation, Query::Related { target, .. }) => {
                        relations += 1;
                        needed += usize::from(target.count(&scene.objects) >= 2);
                    }
                    (PhraseKind::None, Query::Every(wanted)) => {
                        absences += 1;
                        let shown = |part: Description| part.count(&scene.objects) > 0;
                        let shape = Description {
                            shape: wanted.shape,
                            ..Description::default()
                        };
                        let colour = Description {
                            colour: wanted.colour,
                            ..Description::default()
                        };
                        near += usize::from(shown(shape) && shown(colour));
                    }
                    _ => {}
                }
            }
        }
        assert!(needed * 100 > relations * 85, "{needed} of {relations}");
        assert!(near * 100 > absences * 60, "{near} of {absences}");
    }

    #[test]
    fn held_back_combinations_are_named_in_the_unseen_split_only() {
        for split in Split::ALL {
            for scene in scenes(split, 200) {
                let named = |phrase: &&ScenePhrase| {
                    phrase.query.descriptions().any(|one| one.is_held_back())
                };
                let about = scene
                    .phrases
                    .iter()
                    .filter(named)
                    .filter(|phrase| !phrase.targets.is_empty());
                match split {
                    Split::Unseen => assert!(about.count() > 0),
                    _ => assert_eq!(scene.phrases.iter().filter(named).count(), 0),
                }
            }
        }
    }

    #[test]
    fn the_vocabulary_is_small_and_all_of_it_is_used() {
        let words = vocabulary();
        assert!(words.len() < 90);
        assert!(words.is_sorted_by(|a, b| a < b));
        let mut used = BTreeSet::new();
        for scene in scenes(Split::Train, 1000) {
            for phrase in scene.phrases {
                used.extend(phrase.text.split(' ').map(str::to_owned));
            }
        }
        assert_eq!(used.into_iter().collect::<Vec<_>>(), words);
    }

    #[test]
    fn near_ties_mean_nothing_clearly() {
        let mut scene = Scene::draw(&SceneOptions::default(), 0);
        scene.objects.truncate(2);
        for object in &mut scene.objects {
            object.radius_px = 20.0;
        }
        let anything = Description::default();
        let leftmost = Query::Extreme {
            of: anything,
            by: Superlative::Outermost(Side::Left),
        };
        let second = Query::Ranked {
            of: anything,
            rank: 2,
            from: Side::Right,
        };
        scene.objects[0].centre_px = (50.0, 50.0);
        scene.objects[1].centre_px = (61.0, 150.0);
        for query in [leftmost, second] {
            assert!(matches(&query, &scene.objects).is_empty());
            assert_eq!(could_match(&query, &scene.objects), [0, 1]);
        }
        scene.objects[1].centre_px = (63.0, 150.0);
        for query in [leftmost, second] {
            assert_eq!(matches(&query, &scene.objects), [0]);
            assert_eq!(could_match(&query, &scene.objects), [0]);
        }
        let third = Query::Ranked {
            of: anything,
            rank: 3,
            from: Side::Left,
        };
        assert!(could_match(&third, &scene.objects).is_empty());
    }
}
