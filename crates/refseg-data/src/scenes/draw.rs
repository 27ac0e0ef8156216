//! Draws one scene: objects that do not overlap, on a background from which
//! every one of them stands out, with an exact mask each.
//!
//! Only additions, multiplications, divisions and square roots touch the
//! numbers, and tiny-skia fills paths in fixed point, so the same index gives
//! the same bytes on every platform.

use tiny_skia::{FillRule, Mask, Path, PathBuilder, Transform};

use super::phrases::{self, ScenePhrase};

/// One drawn picture, what is in it, and phrases about it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Side of the square picture in pixels.
    pub size: u32,
    /// RGB bytes, row-major, `size * size * 3` of them.
    pub pixels: Vec<u8>,
    /// The objects, none of which overlaps another.
    pub objects: Vec<Object>,
    /// Distinct phrases about the objects, each true and unambiguous.
    pub phrases: Vec<ScenePhrase>,
}

impl Scene {
    /// Draws the scene with this index of the options' split.
    ///
    /// Options outside the limits that [`SceneOptions::validate`] states are
    /// brought inside them. The layout depends on split, index and the numbers
    /// of objects; `size` only scales it. Objects for which no room is found
    /// are left out, which does not happen at up to eight objects.
    pub fn draw(options: &SceneOptions, index: u64) -> Self {
        let options = options.clamped();
        let mut random = Random::new(options.split.seed(index));
        let mut background_random = random.fork();
        let mut phrase_random = random.fork();

        let plans = place(&options, &mut random);
        let mut pixels = Background::draw(&plans, &mut background_random).pixels(options.size);
        let objects: Vec<Object> = plans
            .iter()
            .filter_map(|plan| plan.paint(options.size, &mut pixels))
            .collect();
        add_pixel_noise(&mut pixels, &mut background_random);
        let phrases = phrases::phrases_about(
            &objects,
            options.split,
            options.phrases_per_scene,
            &mut phrase_random,
        );
        Self {
            size: options.size,
            pixels,
            objects,
            phrases,
        }
    }

    /// The union of the masks of `targets` (object indices): `size * size`
    /// bytes of 0 or 1, row-major. Indices that do not exist add nothing.
    pub fn target_mask(&self, targets: &[usize]) -> Vec<u8> {
        let side = self.size as usize;
        let mut union = vec![0; side * side];
        for object in targets
            .iter()
            .filter_map(|&target| self.objects.get(target))
        {
            for (all, &one) in union.iter_mut().zip(&object.mask) {
                *all |= one;
            }
        }
        union
    }

    /// Dense training labels: for each cell of a `cells` x `cells` grid,
    /// row-major, the object that covers most of the cell.
    pub fn label_grid(&self, cells: usize) -> Vec<CellLabel> {
        let side = self.size as usize;
        let cells = cells.clamp(1, side);
        let edge = |cell: usize| cell * side / cells;
        let mut labels = vec![CellLabel::default(); cells * cells];
        for (index, object) in self.objects.iter().enumerate() {
            let [left, top, right, bottom] = object.box_px.map(|edge| edge as usize);
            for row in 0..cells {
                let rows = edge(row).max(top)..edge(row + 1).min(bottom);
                if rows.is_empty() {
                    continue;
                }
                for column in 0..cells {
                    let columns = edge(column).max(left)..edge(column + 1).min(right);
                    if columns.is_empty() {
                        continue;
                    }
                    let pixels: usize = rows
                        .clone()
                        .flat_map(|y| &object.mask[y * side..][columns.clone()])
                        .map(|&inside| usize::from(inside))
                        .sum();
                    let cell_area = (edge(row + 1) - edge(row)) * (edge(column + 1) - edge(column));
                    let coverage = pixels as f32 / cell_area as f32;
                    let label = &mut labels[row * cells + column];
                    if coverage > label.coverage {
                        *label = CellLabel {
                            shape: Some(object.shape),
                            colour: Some(object.colour),
                            coverage,
                            object: Some(index),
                        };
                    }
                }
            }
        }
        labels
    }
}

/// What one cell of [`Scene::label_grid`] shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CellLabel {
    /// Shape of the object with most pixels in the cell; `None` on background.
    pub shape: Option<Shape>,
    /// Colour of that object.
    pub colour: Option<Colour>,
    /// Share of the cell's pixels that belong to that object, 0 to 1.
    pub coverage: f32,
    /// Index of that object in [`Scene::objects`].
    pub object: Option<usize>,
}

/// One object as it is seen.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// The name of its colour.
    pub colour: Colour,
    /// Small or large, with a gap between the two.
    pub scale: Scale,
    /// Plain, or two tones of the same colour.
    pub texture: Texture,
    /// Centre `(x, y)` in pixels.
    pub centre_px: (f32, f32),
    /// Nominal radius in pixels; the outline stays within 1.25 times this.
    pub radius_px: f32,
    /// Clockwise rotation in radians, at most 0.2 either way.
    pub rotation: f32,
    /// Visible pixels: 1 where the shape covers at least half of the pixel,
    /// row-major, the whole picture.
    pub mask: Vec<u8>,
    /// Box XYXY of the mask in pixel edges: right and bottom are exclusive.
    pub box_px: [f32; 4],
    /// Pixels in the mask.
    pub area: u32,
}

/// What to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SceneOptions {
    /// Side of the square picture in pixels, 64 to 2048.
    pub size: u32,
    /// Fewest objects, 2 to 12.
    pub min_objects: usize,
    /// Most objects, `min_objects` to 12.
    pub max_objects: usize,
    /// Phrases for each scene, 1 to 32.
    pub phrases_per_scene: usize,
    /// Which stream of scenes the index counts in.
    pub split: Split,
}

impl Default for SceneOptions {
    /// 224 pixels, 3 to 6 objects, 8 phrases, training scenes.
    fn default() -> Self {
        Self {
            size: 224,
            min_objects: 3,
            max_objects: 6,
            phrases_per_scene: 8,
            split: Split::Train,
        }
    }
}

impl SceneOptions {
    /// Checks the limits given at each field.
    ///
    /// # Errors
    /// Names the first field outside its limits.
    pub fn validate(&self) -> Result<(), SceneOptionsError> {
        let clamped = self.clamped();
        let outside = |field, found, least, most| SceneOptionsError {
            field,
            found,
            least,
            most,
        };
        if self.size != clamped.size {
            let (least, most) = (SIZES.0 as usize, SIZES.1 as usize);
            return Err(outside("size", self.size as usize, least, most));
        }
        if self.min_objects != clamped.min_objects {
            let (least, most) = OBJECTS;
            return Err(outside("min_objects", self.min_objects, least, most));
        }
        if self.max_objects != clamped.max_objects {
            let (least, most) = (self.min_objects, OBJECTS.1);
            return Err(outside("max_objects", self.max_objects, least, most));
        }
        if self.phrases_per_scene != clamped.phrases_per_scene {
            let (least, most) = PHRASES;
            return Err(outside(
                "phrases_per_scene",
                self.phrases_per_scene,
                least,
                most,
            ));
        }
        Ok(())
    }

    fn clamped(&self) -> Self {
        let min_objects = self.min_objects.clamp(OBJECTS.0, OBJECTS.1);
        Self {
            size: self.size.clamp(SIZES.0, SIZES.1),
            min_objects,
            max_objects: self.max_objects.clamp(min_objects, OBJECTS.1),
            phrases_per_scene: self.phrases_per_scene.clamp(PHRASES.0, PHRASES.1),
            split: self.split,
        }
    }
}

/// An option outside its limits.
#[derive(Debug, thiserror::Error)]
#[error("scene option `{field}` is {found}, expected {least} to {most}")]
pub struct SceneOptionsError {
    field: &'static str,
    found: usize,
    least: usize,
    most: usize,
}

/// Streams of scenes that share no seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Scenes to train on.
    Train,
    /// The same distribution as `Train`, from seeds never trained on.
    HeldOut,
    /// Every scene has an object of a [`HELD_BACK`] combination, and a phrase
    /// that names it; the combinations occur in no scene or phrase of the
    /// other splits.
    Unseen,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::HeldOut, Self::Unseen];

    /// Seed of a scene: the split in the two highest bits, the index (modulo
    /// 2^62) below, so that no two splits share one.
    fn seed(self, index: u64) -> u64 {
        ((self as u64) << 62) | (index & ((1 << 62) - 1))
    }
}

/// Combinations of shape and colour that only [`Split::Unseen`] shows. Every
/// shape and every colour is left in seven combinations at least.
pub const HELD_BACK: [(Shape, Colour); 6] = [
    (Shape::Square, Colour::Red),
    (Shape::Triangle, Colour::Green),
    (Shape::Star, Colour::Purple),
    (Shape::Ring, Colour::Yellow),
    (Shape::Cross, Colour::Orange),
    (Shape::Heart, Colour::Blue),
];

/// Whether this combination is one of [`HELD_BACK`].
pub fn is_held_back(shape: Shape, colour: Colour) -> bool {
    HELD_BACK.contains(&(shape, colour))
}

/// The shapes; the discriminant is the class number of dense labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Ring,
    Cross,
    Heart,
    Diamond,
}

impl Shape {
    /// All shapes, in class order.
    pub const ALL: [Self; 8] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Star,
        Self::Ring,
        Self::Cross,
        Self::Heart,
        Self::Diamond,
    ];

    /// The noun in the singular.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Ring => "ring",
            Self::Cross => "cross",
            Self::Heart => "heart",
            Self::Diamond => "diamond",
        }
    }

    /// The noun in the plural.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Ring => "rings",
            Self::Cross => "crosses",
            Self::Heart => "hearts",
            Self::Diamond => "diamonds",
        }
    }

    /// Radius of a circle around the outline, in nominal radii. The outlines
    /// differ in it so that equal nominal radii look equally large.
    fn reach(self) -> f32 {
        match self {
            Self::Circle | Self::Ring => 1.0,
            Self::Square | Self::Triangle => 1.2,
            Self::Star | Self::Heart => 1.18,
            Self::Cross => 1.06,
            Self::Diamond => 1.22,
        }
    }

    /// The outline in pixels, to be filled by the even-odd rule.
    fn outline(self, centre: (f32, f32), radius: f32, rotation: f32) -> Option<Path> {
        let (sin, cos) = sin_cos(rotation);
        let at = |x: f32, y: f32| {
            (
                centre.0 + radius * (x * cos - y * sin),
                centre.1 + radius * (x * sin + y * cos),
            )
        };
        let mut path = PathBuilder::new();
        let mut polygon = |corners: &[(f32, f32)]| {
            for (number, &(x, y)) in corners.iter().enumerate() {
                let (x, y) = at(x, y);
                if number == 0 {
                    path.move_to(x, y);
                } else {
                    path.line_to(x, y);
                }
            }
            path.close();
        };
        match self {
            Self::Circle => path.push_circle(centre.0, centre.1, radius * 0.96),
            Self::Ring => {
                path.push_circle(centre.0, centre.1, radius);
                path.push_circle(centre.0, centre.1, radius * 0.55);
            }
            Self::Square => {
                polygon(&[(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]);
            }
            // Equilateral, its bounding box centred.
            Self::Triangle => polygon(&[(0.0, -0.9), (1.04, 0.9), (-1.04, 0.9)]),
            Self::Star => {
                let mut corners = [(0.0, 0.0); 10];
                for (number, corner) in corners.iter_mut().enumerate() {
                    let (sin, cos) = sin_cos(number as f32 * (std::f32::consts::PI / 5.0));
                    let reach = if number % 2 == 0 { 1.16 } else { 0.52 };
                    *corner = (reach * sin, -reach * cos);
                }
                polygon(&corners);
            }
            Self::Cross => {
                let (long, wide) = (1.0, 0.34);
                polygon(&[
                    (-wide, -long),
                    (wide, -long),
                    (wide, -wide),
                    (long, -wide),
                    (long, wide),
                    (wide, wide),
                    (wide, long),
                    (-wide, long),
                    (-wide, wide),
                    (-long, wide),
                    (-long, -wide),
                    (-wide, -wide),
                ]);
            }
            Self::Heart => {
                let (x, y) = at(0.0, 1.0);
                path.move_to(x, y);
                let mut curve = |a: (f32, f32), b: (f32, f32), to: (f32, f32)| {
                    let ((ax, ay), (bx, by), (x, y)) = (at(a.0, a.1), at(b.0, b.1), at(to.0, to.1));
                    path.cubic_to(ax, ay, bx, by, x, y);
                };
                curve((-0.4, 0.6), (-1.06, 0.2), (-1.06, -0.34));
                curve((-1.06, -0.74), (-0.8, -0.94), (-0.54, -0.94));
                curve((-0.28, -0.94), (-0.08, -0.78), (0.0, -0.5));
                curve((0.08, -0.78), (0.28, -0.94), (0.54, -0.94));
                curve((0.8, -0.94), (1.06, -0.74), (1.06, -0.34));
                curve((1.06, 0.2), (0.4, 0.6), (0.0, 1.0));
                path.close();
            }
            // Narrower than tall, so that it is no tilted square.
            Self::Diamond => polygon(&[(0.0, -1.22), (0.74, 0.0), (0.0, 1.22), (-0.74, 0.0)]),
        }
        path.finish()
    }
}

/// The colours; the discriminant is the class number of dense labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Orange,
    Purple,
    Black,
    White,
}

impl Colour {
    /// All colours, in class order.
    pub const ALL: [Self; 8] = [
        Self::Red,
        Self::Green,
        Self::Blue,
        Self::Yellow,
        Self::Orange,
        Self::Purple,
        Self::Black,
        Self::White,
    ];

    /// The adjective.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Orange => "orange",
            Self::Purple => "purple",
            Self::Black => "black",
            Self::White => "white",
        }
    }

    fn rgb(self) -> [i32; 3] {
        match self {
            Self::Red => [214, 34, 38],
            Self::Green => [36, 158, 62],
            Self::Blue => [34, 82, 222],
            Self::Yellow => [246, 220, 40],
            Self::Orange => [246, 132, 16],
            Self::Purple => [138, 46, 178],
            Self::Black => [22, 22, 24],
            Self::White => [242, 242, 240],
        }
    }
}

/// Small or large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// Nominal radius 0.075 to 0.10 of the picture's side.
    Small,
    /// Nominal radius 0.14 to 0.18 of the picture's side.
    Large,
}

impl Scale {
    /// The adjective.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    fn radius(self, random: &mut Random) -> f32 {
        match self {
            Self::Small => random.range(0.075, 0.10),
            Self::Large => random.range(0.14, 0.18),
        }
    }
}

/// How an object is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Texture {
    /// One tone.
    Plain,
    /// Stripes of a second tone.
    Striped,
    /// Dots of a second tone.
    Dotted,
}

impl Texture {
    /// All textures.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Striped, Self::Dotted];

    /// The adjective.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Striped => "striped",
            Self::Dotted => "dotted",
        }
    }
}

const SIZES: (u32, u32) = (64, 2048);
const OBJECTS: (usize, usize) = (2, 12);
const PHRASES: (usize, usize) = (1, 32);

/// Largest rotation in radians: beyond this a square begins to look like a
/// diamond.
const MAX_ROTATION: f32 = 0.2;
/// Free space around every object, in sides of the picture.
const GAP: f32 = 0.015;
/// Most levels of grain either way. All tones keep this distance from both ends
/// of the byte, so that grain never wraps round.
const MAX_NOISE: i32 = 4;
/// Wanted distance (see [`contrast`]) between an object's tones and the
/// background; most backgrounds reach it at the first few tries.
const WANTED_CONTRAST: f32 = 170.0;

/// An object to be drawn, in units of the picture's side.
#[derive(Clone)]
struct Plan {
    shape: Shape,
    colour: Colour,
    scale: Scale,
    texture: Texture,
    centre: (f32, f32),
    radius: f32,
    rotation: f32,
    tone: [i32; 3],
    second_tone: [i32; 3],
    /// Direction across the stripes, a unit vector.
    across: (f32, f32),
}

impl Plan {
    fn draw(shape: Shape, colour: Colour, random: &mut Random) -> Self {
        let scale = if random.chance(0.45) {
            Scale::Large
        } else {
            Scale::Small
        };
        let texture = match random.below(10) {
            0 => Texture::Striped,
            1 => Texture::Dotted,
            _ => Texture::Plain,
        };
        // A little variety; black and white would soon look tinted.
        let jitter = match colour {
            Colour::Black | Colour::White => 4,
            _ => 10,
        };
        let tone = colour.rgb().map(|channel| {
            let channel = channel + random.below(2 * jitter + 1) as i32 - jitter as i32;
            channel.clamp(MAX_NOISE, 255 - MAX_NOISE)
        });
        // Light colours get darker marks and dark ones lighter marks; the
        // step is small enough to keep the colour's name.
        let second_tone = match colour {
            Colour::Yellow | Colour::White | Colour::Orange => {
                tone.map(|c| (c * 76 / 100).max(MAX_NOISE))
            }
            Colour::Black => tone.map(|c| c + 64),
            _ => tone.map(|c| c + (255 - MAX_NOISE - c) * 38 / 100),
        };
        Self {
            shape,
            colour,
            scale,
            texture,
            centre: (0.5, 0.5),
            radius: scale.radius(random),
            rotation: random.range(-MAX_ROTATION, MAX_ROTATION),
            tone,
            second_tone,
            across: {
                let (sin, cos) = sin_cos(random.range(0.0, std::f32::consts::PI));
                (cos, sin)
            },
        }
    }

    fn reach(&self) -> f32 {
        self.radius * self.shape.reach()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (dx, dy) = (
            self.centre.0 - other.centre.0,
            self.centre.1 - other.centre.1,
        );
        let apart = self.reach() + other.reach() + GAP;
        dx * dx + dy * dy < apart * apart
    }

    /// Paints the object into `pixels`; `None` if it covers no pixel.
    fn paint(&self, size: u32, pixels: &mut [u8]) -> Option<Object> {
        let side = size as usize;
        let unit = size as f32;
        let centre = (self.centre.0 * unit, self.centre.1 * unit);
        let radius = self.radius * unit;

        // The path is filled in a window around the object, then blended.
        let reach = self.reach() * unit + 1.0;
        let window_start = |centre: f32| (centre - reach).max(0.0) as usize;
        let (left, top) = (window_start(centre.0), window_start(centre.1));
        let window_end = |centre: f32| ((centre + reach) as usize + 1).min(side);
        let (right, bottom) = (window_end(centre.0), window_end(centre.1));
        let (width, height) = (right.checked_sub(left)?, bottom.checked_sub(top)?);
        let mut coverage = Mask::new(width as u32, height as u32)?;
        let outline = self.shape.outline(
            (centre.0 - left as f32, centre.1 - top as f32),
            radius,
            self.rotation,
        )?;
        coverage.fill_path(&outline, FillRule::EvenOdd, true, Transform::identity());

        let mut mask = vec![0; side * side];
        let mut bounds: Option<(usize, usize, usize, usize)> = None;
        let mut area = 0;
        for (row, covered) in coverage.data().chunks_exact(width).enumerate() {
            let y = top + row;
            for (column, &cover) in covered.iter().enumerate() {
                if cover == 0 {
                    continue;
                }
                let x = left + column;
                let tone = match self.texture {
                    Texture::Plain => self.tone,
                    _ => {
                        let offset = (x as f32 + 0.5 - centre.0, y as f32 + 0.5 - centre.1);
                        self.textured_tone(offset, radius)
                    }
                };
                let pixel = &mut pixels[(y * side + x) * 3..][..3];
                for (under, over) in pixel.iter_mut().zip(tone) {
                    let behind = i32::from(*under);
                    *under = (behind + (over - behind) * i32::from(cover) / 255) as u8;
                }
                if cover >= 128 {
                    mask[y * side + x] = 1;
                    area += 1;
                    let (x0, y0, x1, y1) = bounds.unwrap_or((x, y, x, y));
                    bounds = Some((x0.min(x), y0.min(y), x1.max(x), y1.max(y)));
                }
            }
        }
        let (x0, y0, x1, y1) = bounds?;
        Some(Object {
            shape: self.shape,
            colour: self.colour,
            scale: self.scale,
            texture: self.texture,
            centre_px: centre,
            radius_px: radius,
            rotation: self.rotation,
            mask,
            box_px: [x0 as f32, y0 as f32, (x1 + 1) as f32, (y1 + 1) as f32],
            area,
        })
    }

    /// Colour at an offset from the centre, in pixels.
    fn textured_tone(&self, offset: (f32, f32), radius: f32) -> [i32; 3] {
        // At least five pixels, so that marks are seen on small objects.
        let period = (radius * 0.42).max(5.0);
        let along = |axis: (f32, f32)| {
            let position = (offset.0 * axis.0 + offset.1 * axis.1) / period;
            position - position.floor() - 0.5
        };
        let u = along(self.across);
        // How far inside a mark the pixel's centre lies, in pixels; one pixel
        // of it is the soft edge.
        let depth = match self.texture {
            Texture::Plain => return self.tone,
            Texture::Striped => (0.25 - u.abs()) * period,
            Texture::Dotted => {
                let v = along((-self.across.1, self.across.0));
                (0.3 - (u * u + v * v).sqrt()) * period
            }
        };
        let share = ((depth + 0.5).clamp(0.0, 1.0) * 256.0) as i32;
        let mut tone = self.tone;
        for (first, second) in tone.iter_mut().zip(self.second_tone) {
            *first += (second - *first) * share / 256;
        }
        tone
    }
}

/// Draws attributes and finds room for every object.
fn place(options: &SceneOptions, random: &mut Random) -> Vec<Plan> {
    let wanted = options.min_objects + random.below(options.max_objects - options.min_objects + 1);
    let mut pairs = draw_pairs(options.split, wanted, random);
    let mut plans: Vec<Plan> = pairs
        .drain(..)
        .map(|(shape, colour)| Plan::draw(shape, colour, random))
        .collect();
    loop {
        for _ in 0..8 {
            if find_room(&mut plans, random) {
                return plans;
            }
        }
        // Too crowded: make the last large object small, then drop objects.
        match plans.iter().rposition(|plan| plan.scale == Scale::Large) {
            Some(large) => {
                plans[large].scale = Scale::Small;
                plans[large].radius = Scale::Small.radius(random);
            }
            None => {
                plans.pop();
            }
        }
    }
}

/// Shapes and colours: of the later objects, half take the shape or the colour
/// of an earlier one on purpose, so that one attribute is seldom enough.
///
/// No other object repeats the pair of the first one, so every scene has an
/// object that shape and colour single out.
fn draw_pairs(split: Split, count: usize, random: &mut Random) -> Vec<(Shape, Colour)> {
    let mut pairs: Vec<(Shape, Colour)> = Vec::with_capacity(count);
    while pairs.len() < count {
        let mut pair = match split {
            Split::Unseen if pairs.is_empty() || random.chance(0.3) => random.pick(&HELD_BACK),
            _ => (random.pick(&Shape::ALL), random.pick(&Colour::ALL)),
        };
        if !pairs.is_empty() && random.chance(0.5) {
            let (shape, colour) = random.pick(&pairs);
            match random.below(5) {
                0 | 1 => pair.0 = shape,
                2 | 3 => pair.1 = colour,
                _ => pair = (shape, colour),
            }
        }
        let forbidden = split != Split::Unseen && is_held_back(pair.0, pair.1);
        if !forbidden && pairs.first() != Some(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}

/// Places the objects, the largest first; false if one found no room.
fn find_room(plans: &mut [Plan], random: &mut Random) -> bool {
    let mut order: Vec<usize> = (0..plans.len()).collect();
    order.sort_by(|&a, &b| plans[b].reach().total_cmp(&plans[a].reach()));
    for (done, &index) in order.iter().enumerate() {
        let border = plans[index].reach() + GAP;
        let found = (0..40).any(|_| {
            plans[index].centre = (
                random.range(border, 1.0 - border),
                random.range(border, 1.0 - border),
            );
            let plan = &plans[index];
            !order[..done]
                .iter()
                .any(|&other| plan.overlaps(&plans[other]))
        });
        if !found {
            return false;
        }
    }
    true
}

/// Two colours, mixed by a field that is given on a coarse grid.
struct Background {
    colours: [[f32; 3]; 2],
    /// Grid cells along a side.
    cells: usize,
    /// Shares of the second colour at the `(cells + 1)²` grid corners.
    corners: Vec<f32>,
}

impl Background {
    fn draw(plans: &[Plan], random: &mut Random) -> Self {
        let (cells, corners) = match random.below(4) {
            0 => (1, vec![0.0; 4]),
            1 | 2 => {
                // A plane: bilinear interpolation of its corners is exact.
                let (sin, cos) = sin_cos(random.range(0.0, 2.0 * std::f32::consts::PI));
                let reach = sin.abs() + cos.abs();
                let plane = |x: f32, y: f32| 0.5 + (x * cos + y * sin) / (2.0 * reach);
                let corners = vec![
                    plane(-1.0, -1.0),
                    plane(1.0, -1.0),
                    plane(-1.0, 1.0),
                    plane(1.0, 1.0),
                ];
                (1, corners)
            }
            _ => {
                let cells = 3 + random.below(5);
                let corners = (0..(cells + 1) * (cells + 1))
                    .map(|_| random.range(0.0, 1.0))
                    .collect();
                (cells, corners)
            }
        };
        Self {
            colours: background_colours(plans, random),
            cells,
            corners,
        }
    }

    fn pixels(&self, size: u32) -> Vec<u8> {
        let side = size as usize;
        let [first, second] = self.colours;
        // Rounded fractions hide the creases between grid cells; a plane has
        // none and needs straight ones.
        let soften = |t: f32| {
            if self.cells == 1 {
                t
            } else {
                t * t * (3.0 - 2.0 * t)
            }
        };
        // Shares have 12 fractional bits: integers are much faster here.
        let fixed = |share: f32| (share * 4096.0) as i32;
        let steps: Vec<(usize, i32)> = (0..side)
            .map(|pixel| {
                let position = (pixel as f32 + 0.5) * self.cells as f32 / side as f32;
                let cell = (position as usize).min(self.cells - 1);
                (cell, fixed(soften(position - cell as f32)))
            })
            .collect();
        let base = first.map(|channel| fixed(channel) + (1 << 11));
        let span = [0, 1, 2].map(|channel| (second[channel] - first[channel]) as i32);
        let corners: Vec<i32> = self.corners.iter().map(|&share| fixed(share)).collect();
        let mut pixels = vec![0; side * side * 3];
        let mut row = vec![0; self.cells + 1];
        for (line, &(cell_y, share_y)) in pixels.chunks_exact_mut(side * 3).zip(&steps) {
            let upper = &corners[cell_y * (self.cells + 1)..];
            let lower = &corners[(cell_y + 1) * (self.cells + 1)..];
            for ((value, &up), &down) in row.iter_mut().zip(upper).zip(lower) {
                *value = up + (((down - up) * share_y) >> 12);
            }
            for (pixel, &(cell_x, share_x)) in line.chunks_exact_mut(3).zip(&steps) {
                let (left, right) = (row[cell_x], row[cell_x + 1]);
                let share = left + (((right - left) * share_x) >> 12);
                pixel[0] = ((base[0] + span[0] * share) >> 12) as u8;
                pixel[1] = ((base[1] + span[1] * share) >> 12) as u8;
                pixel[2] = ((base[2] + span[2] * share) >> 12) as u8;
            }
        }
        pixels
    }
}

/// Two muted colours; every mixture of them stands out from every object.
fn background_colours(plans: &[Plan], random: &mut Random) -> [[f32; 3]; 2] {
    let mut best = ([[0.0; 3]; 2], -1.0);
    for _ in 0..60 {
        let colours = [(); 2].map(|()| {
            let grey = random.range(20.0, 240.0);
            let muting = random.range(0.35, 0.95);
            [(); 3].map(|()| {
                let channel = random.range(15.0, 245.0);
                (channel + (grey - channel) * muting).clamp(8.0, 247.0)
            })
        });
        let mut least = f32::MAX;
        for step in 0..5 {
            let share = step as f32 / 4.0;
            let mut mixture = [0.0; 3];
            for (channel, value) in mixture.iter_mut().enumerate() {
                *value = colours[0][channel] + (colours[1][channel] - colours[0][channel]) * share;
            }
            for plan in plans {
                least = least.min(contrast(mixture, plan.tone));
                if plan.texture != Texture::Plain {
                    least = least.min(contrast(mixture, plan.second_tone));
                }
            }
        }
        if least > best.1 {
            best = (colours, least);
        }
        if best.1 >= WANTED_CONTRAST {
            break;
        }
    }
    best.0
}

/// Distance of two colours, 0 to 765: Euclidean in RGB with weights near those
/// of human vision (the "redmean" approximation).
fn contrast(a: [f32; 3], b: [i32; 3]) -> f32 {
    let b = b.map(|channel| channel as f32);
    let red_mean = (a[0] + b[0]) / 512.0;
    let [r, g, b] = [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
    ((2.0 + red_mean) * r * r + 4.0 * g * g + (3.0 - red_mean) * b * b).sqrt()
}

/// Adds grain of up to [`MAX_NOISE`] levels either way, the same for the three
/// channels.
fn add_pixel_noise(pixels: &mut [u8], random: &mut Random) {
    let strength = random.below(MAX_NOISE as usize + 1) as u32;
    if strength == 0 {
        return;
    }
    // A generator of 32 bits is enough for grain and several times faster.
    let mut state = random.next() as u32;
    for pixel in pixels.chunks_exact_mut(3) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (((state >> 16) * (2 * strength + 1)) >> 16).wrapping_sub(strength) as u8;
        for channel in pixel {
            *channel = channel.wrapping_add(noise);
        }
    }
}

/// Sine and cosine by their power series, for angles within a few turns: the
/// platform's own differ in the last bit, and a scene must not.
fn sin_cos(angle: f32) -> (f32, f32) {
    let angle = f64::from(angle);
    let turn = 2.0 * std::f64::consts::PI;
    let x = angle - (angle / turn).round() * turn;
    let (mut sin, mut cos) = (0.0, 0.0);
    let mut term = 1.0;
    for power in 0..28 {
        match power % 4 {
            0 => cos += term,
            1 => sin += term,
            2 => cos -= term,
            _ => sin -= term,
        }
        term *= x / f64::from(power + 1);
    }
    (sin as f32, cos as f32)
}

/// The generator xoshiro256++ (Blackman and Vigna), seeded through SplitMix64,
/// so that neighbouring seeds give unrelated streams.
pub(super) struct Random {
    state: [u64; 4],
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut counter = seed;
        let state = [(); 4].map(|()| {
            counter = counter.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = counter;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        });
        Self { state }
    }

    /// A generator whose stream does not depend on how far this one is used
    /// afterwards.
    fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A whole number below `bound`, which is above 0 and below 2^32.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// A number from `low` up to `high`.
    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1u32 << 24) as f32)
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.range(0.0, 1.0) < probability
    }

    /// One element of a slice that is not empty.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Half the usual side: what is tested does not depend on it.
    fn options(split: Split) -> SceneOptions {
        SceneOptions {
            size: 112,
            split,
            ..SceneOptions::default()
        }
    }

    fn fnv(hash: u64, bytes: &[u8]) -> u64 {
        bytes.iter().fold(hash, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Pinned: a change here changes every trained model and published number.
    #[test]
    fn same_index_gives_the_same_bytes_for_ever() {
        let mut hashes = Vec::new();
        for split in Split::ALL {
            let mut hash = 0xcbf2_9ce4_8422_2325;
            for index in 0..20 {
                let options = SceneOptions {
                    split,
                    ..SceneOptions::default()
                };
                let scene = Scene::draw(&options, index);
                hash = fnv(hash, &scene.pixels);
                for object in &scene.objects {
                    hash = fnv(hash, &object.mask);
                }
                for phrase in &scene.phrases {
                    hash = fnv(hash, phrase.text.as_bytes());
                    let targets: Vec<u8> = phrase.targets.iter().map(|&t| t as u8).collect();
                    hash = fnv(hash, &targets);
                }
            }
            hashes.push(hash);
        }
        assert_eq!(
            hashes,
            [
                0x3200_bb21_9bda_0dee,
                0x3ba7_cfe2_6383_a0ad,
                0x592e_901a_fdfd_e231,
            ],
            "{hashes:#x?}"
        );
    }

    #[test]
    fn splits_never_share_a_seed_or_a_picture() {
        let mut seeds = HashSet::new();
        let mut pictures = HashSet::new();
        for split in Split::ALL {
            for index in [0, 1, 2, 3, 1 << 40, (1 << 62) - 1] {
                assert!(seeds.insert(split.seed(index)));
                let scene = Scene::draw(&options(split), index);
                assert!(pictures.insert(fnv(1, &scene.pixels)));
            }
            assert_eq!(split.seed(5), split.seed(5 + (1 << 62)));
        }
    }

    #[test]
    fn held_back_combinations_are_seen_in_one_split_only() {
        for shape in Shape::ALL {
            assert!(HELD_BACK.iter().filter(|pair| pair.0 == shape).count() <= 1);
        }
        for colour in Colour::ALL {
            assert!(HELD_BACK.iter().filter(|pair| pair.1 == colour).count() <= 1);
        }
        for split in Split::ALL {
            for index in 0..500 {
                let scene = Scene::draw(&options(split), index);
                let shown = scene
                    .objects
                    .iter()
                    .any(|object| is_held_back(object.shape, object.colour));
                assert_eq!(shown, split == Split::Unseen, "{split:?} {index}");
            }
        }
    }

    #[test]
    fn masks_are_disjoint_whole_and_measured() {
        let mut shapes = HashSet::new();
        for index in 0..150 {
            let scene = Scene::draw(&options(Split::Train), index);
            assert!((3..=6).contains(&scene.objects.len()));
            let side = scene.size as usize;
            let mut sum = vec![0u8; side * side];
            for object in &scene.objects {
                shapes.insert((object.shape, object.colour));
                let inside: Vec<usize> =
                    (0..side * side).filter(|&i| object.mask[i] == 1).collect();
                assert_eq!(inside.len(), object.area as usize);
                let xs = || inside.iter().map(|i| i % side);
                let ys = || inside.iter().map(|i| i / side);
                let bounds = [
                    xs().min().unwrap(),
                    ys().min().unwrap(),
                    xs().max().unwrap() + 1,
                    ys().max().unwrap() + 1,
                ];
                assert_eq!(object.box_px, bounds.map(|edge| edge as f32));
                // Nothing is cut off by the border or by the paint window.
                assert!(bounds[0] > 0 && bounds[1] > 0);
                assert!(bounds[2] < side && bounds[3] < side);
                for i in inside {
                    sum[i] += 1;
                }
                let reach = object.shape.reach() * object.radius_px + 1.0;
                for (centre, low, high) in [
                    (object.centre_px.0, bounds[0], bounds[2]),
                    (object.centre_px.1, bounds[1], bounds[3]),
                ] {
                    assert!(centre - low as f32 <= reach && high as f32 - centre <= reach);
                }
            }
            assert!(sum.iter().all(|&count| count <= 1));
            let all: Vec<usize> = (0..scene.objects.len()).collect();
            assert_eq!(scene.target_mask(&all), sum);
        }
        assert_eq!(shapes.len(), 64 - HELD_BACK.len());
    }

    #[test]
    fn every_large_object_is_larger_than_every_small_one() {
        let mut smallest_large = u32::MAX;
        let mut largest_small = 0;
        for index in 0..300 {
            for object in Scene::draw(&options(Split::Train), index).objects {
                match object.scale {
                    Scale::Small => largest_small = largest_small.max(object.area),
                    Scale::Large => smallest_large = smallest_large.min(object.area),
                }
            }
        }
        assert!(
            smallest_large > largest_small,
            "{smallest_large} {largest_small}"
        );
    }

    #[test]
    fn objects_stand_out_from_what_surrounds_them() {
        for index in 0..300 {
            let options = options(Split::Train);
            let mut random = Random::new(options.split.seed(index));
            let mut background_random = random.fork();
            random.fork();
            let plans = place(&options, &mut random);
            let background = Background::draw(&plans, &mut background_random);
            let pixels = background.pixels(64);
            let grain = MAX_NOISE as u8..=255 - MAX_NOISE as u8;
            assert!(pixels.iter().all(|level| grain.contains(level)));
            for tone in plans.iter().flat_map(|plan| [plan.tone, plan.second_tone]) {
                assert!(tone.iter().all(|&level| grain.contains(&(level as u8))));
            }
            let least = pixels
                .chunks_exact(3)
                .flat_map(|p| {
                    let pixel = [f32::from(p[0]), f32::from(p[1]), f32::from(p[2])];
                    plans.iter().map(move |plan| contrast(pixel, plan.tone))
                })
                .fold(f32::MAX, f32::min);
            assert!(least > 100.0, "scene {index}: {least}");
        }
    }

    #[test]
    fn half_of_the_objects_share_an_attribute() {
        let (mut sharing, mut all) = (0, 0);
        for index in 0..300 {
            let objects = Scene::draw(&options(Split::Train), index).objects;
            all += objects.len();
            sharing += (0..objects.len())
                .filter(|&i| {
                    (0..objects.len()).any(|j| {
                        i != j
                            && (objects[i].shape == objects[j].shape
                                || objects[i].colour == objects[j].colour)
                    })
                })
                .count();
        }
        assert!(sharing * 2 > all, "{sharing} of {all}");
        assert!(sharing < all * 9 / 10, "{sharing} of {all}");
    }

    #[test]
    fn grid_labels_count_the_mask() {
        let scene = Scene::draw(&SceneOptions::default(), 7);
        for cells in [8, 15, 32] {
            let labels = scene.label_grid(cells);
            assert_eq!(labels.len(), cells * cells);
            for (index, label) in labels.iter().enumerate() {
                let (row, column) = (index / cells, index % cells);
                let edge = |cell: usize| cell * 224 / cells;
                let mut counts = vec![0; scene.objects.len()];
                for y in edge(row)..edge(row + 1) {
                    for x in edge(column)..edge(column + 1) {
                        for (count, object) in counts.iter_mut().zip(&scene.objects) {
                            *count += u32::from(object.mask[y * 224 + x]);
                        }
                    }
                }
                let area = (edge(row + 1) - edge(row)) * (edge(column + 1) - edge(column));
                let most = *counts.iter().max().unwrap();
                assert_eq!(label.coverage, most as f32 / area as f32);
                assert_eq!(label.object.is_some(), most > 0);
                if let Some(object) = label.object {
                    assert_eq!(counts[object], most);
                    assert_eq!(label.shape, Some(scene.objects[object].shape));
                    assert_eq!(label.colour, Some(scene.objects[object].colour));
                }
            }
        }
    }

    #[test]
    fn options_outside_the_limits_are_named_and_still_drawn() {
        let bad = SceneOptions {
            max_objects: 99,
            size: 100,
            ..SceneOptions::default()
        };
        let message = bad.validate().unwrap_err().to_string();
        assert_eq!(
            message,
            "scene option `max_objects` is 99, expected 3 to 12"
        );
        let crowded = Scene::draw(&bad, 3);
        assert!((2..=12).contains(&crowded.objects.len()));
        assert_eq!(crowded.pixels.len(), 100 * 100 * 3);
    }

    #[test]
    fn sine_and_cosine_are_right() {
        for step in -70..70 {
            let angle = step as f32 * 0.1;
            let (sin, cos) = sin_cos(angle);
            assert!((sin - angle.sin()).abs() < 1e-6 && (cos - angle.cos()).abs() < 1e-6);
        }
    }
}
