//! The picture with what was found in it: objects bright in an outline of
//! their own colour, the rest dimmed, and the phrases as a legend below.

mod comparison;
mod legend;
mod outline;
mod text;

use refseg::{Image, image::ImageError};
use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Path, PathBuilder, Pixmap, PremultipliedColorU8, Stroke,
    StrokeDash, Transform,
};

pub(crate) use comparison::compare;
use legend::{Chip, Item, Legend, paint, rgb};
pub(crate) use outline::Field;

/// A phrase and what was found for it.
pub(crate) struct Entry<'a> {
    /// The phrase.
    pub(crate) phrase: &'a str,
    /// The object's probabilities; `None` if nothing was found.
    pub(crate) found: Option<Field<'a>>,
}

/// Bright on the dimmed picture, and far apart for every kind of colour vision;
/// numbers tell phrases apart beyond the eighth.
const PALETTE: [[u8; 3]; 8] = [
    [255, 184, 28],
    [86, 190, 255],
    [255, 110, 180],
    [0, 214, 150],
    [246, 240, 110],
    [150, 130, 255],
    [255, 96, 56],
    [225, 230, 236],
];

/// Longest side that is drawn; a larger picture is reduced to it.
const LONGEST: u32 = 4096;
/// A picture with a longest side below this is enlarged...
const SMALL: u32 = 512;
/// ...by the whole number that takes it to this at least.
const ENLARGED: u32 = 600;
/// Narrowest canvas, for the sake of the legend.
const NARROWEST: u32 = 320;

/// Strength of the light around an object, and the steps in which it fades.
const GLOW: f32 = 0.35;
const GLOW_STEPS: usize = 6;
/// How much colour and light the surroundings keep.
const SATURATION: f32 = 0.35;
const BRIGHTNESS: f32 = 0.40;

/// Draws the overlay.
///
/// # Errors
/// If the canvas is larger than memory.
pub(crate) fn draw(image: &Image, entries: &[Entry<'_>]) -> Result<Image, ImageError> {
    let fit = Fit::of(image.width(), image.height());
    let picture = image.resize(fit.width, fit.height);
    let unit = ((fit.width as f32 * fit.height as f32).sqrt() / 32.0).clamp(15.0, 80.0);
    let width = fit.width.max(NARROWEST);
    let items: Vec<Item<'_>> = entries
        .iter()
        .enumerate()
        .map(|(i, entry)| Item {
            phrase: entry.phrase,
            colour: entry.found.map(|_| rgb(PALETTE[i % PALETTE.len()])),
            number: (entries.len() > 1).then_some(i + 1),
        })
        .collect();
    let legend = Legend::new(&items, width as f32, unit);
    let height = fit.height + legend.height();

    let no_room = || ImageError::PixelCount {
        width,
        height,
        found: 0,
        expected: u64::from(width) * u64::from(height) * 3,
    };
    let mut canvas = Pixmap::new(width, height).ok_or_else(no_room)?;
    canvas.fill(rgb(legend::PANEL));
    let left = (width - fit.width) / 2;
    let shapes = Shape::all(entries, &items, &fit, left, unit);

    let mut bright = tiny_skia::Mask::new(width, height).ok_or_else(no_room)?;
    for shape in &shapes {
        bright.fill_path(&shape.path, FillRule::EvenOdd, true, Transform::identity());
    }
    paint_picture(&mut canvas, &picture, left, None);
    for shape in &shapes {
        shape.draw_glow(&mut canvas, unit);
    }
    // The outlines of one object lie around each other, the outermost drawn first.
    let mut from_outside: Vec<&Shape> = shapes.iter().collect();
    from_outside.sort_by_key(|shape| std::cmp::Reverse(shape.ring));
    for shape in from_outside.iter().filter(|shape| shape.ring > 0) {
        shape.draw_outline(&mut canvas, unit);
    }
    paint_picture(&mut canvas, &picture, left, Some(&bright));
    for shape in from_outside.iter().filter(|shape| shape.ring == 0) {
        shape.draw_outline(&mut canvas, unit);
    }
    draw_badges(&mut canvas, &shapes, unit, fit.height as f32);
    // Strokes reach beyond the picture; the strip begins clean.
    clear_below(&mut canvas, fit.height);
    legend.draw(&mut canvas, fit.height as f32);
    to_image(&canvas)
}

/// The size at which a picture is drawn.
struct Fit {
    width: u32,
    height: u32,
}

impl Fit {
    fn of(width: u32, height: u32) -> Self {
        let longest = width.max(height);
        if longest < SMALL {
            let factor = ENLARGED.div_ceil(longest);
            return Self {
                width: width * factor,
                height: height * factor,
            };
        }
        Self::within(width, height, LONGEST)
    }

    /// As large as the picture, or reduced to a longest side.
    fn within(width: u32, height: u32, most: u32) -> Self {
        let longest = width.max(height);
        if longest <= most {
            return Self { width, height };
        }
        let scale = f64::from(most) / f64::from(longest);
        let reduced = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most);
        Self {
            width: reduced(width),
            height: reduced(height),
        }
    }
}

/// An object found, as it is drawn.
struct Shape {
    path: Path,
    colour: Color,
    number: Option<usize>,
    /// Where each of its larger pieces begins at the upper left.
    corners: Vec<(f32, f32)>,
    /// How many outlines of other phrases lie between this one and the object.
    ring: usize,
    /// Dashes of its outline, which is solid otherwise.
    dash: Option<StrokeDash>,
}

/// A piece smaller than this share of the object gets no badge.
const SMALLEST_BADGED: f32 = 0.05;

impl Shape {
    /// The shapes of all phrases that found any pixel.
    fn all(
        entries: &[Entry<'_>],
        items: &[Item<'_>],
        fit: &Fit,
        left: u32,
        unit: f32,
    ) -> Vec<Self> {
        let mut shapes: Vec<Self> = Vec::new();
        let mut fields: Vec<Field<'_>> = Vec::new();
        for (entry, item) in entries.iter().zip(items) {
            let Some(field) = entry.found else { continue };
            let Some(mut shape) = Self::new(&field, fit, left, unit, item) else {
                continue;
            };
            let others = shapes.iter().zip(&fields);
            let taken: Vec<usize> = others
                .filter(|(_, other)| overlap(&field, other))
                .map(|(shape, _)| shape.ring)
                .collect();
            shape.ring = (0..).find(|ring| !taken.contains(ring)).unwrap_or(0);
            shapes.push(shape);
            fields.push(field);
        }
        shapes
    }

    /// `None` if no pixel is foreground.
    fn new(field: &Field<'_>, fit: &Fit, left: u32, unit: f32, item: &Item<'_>) -> Option<Self> {
        let loops = field.loops();
        let whole: f32 = loops.iter().map(|l| l.area).sum();
        // At the picture's border the outline moves inside, or half of it would be cut off.
        let margin = outline_width(unit) / 2.0;
        let place = |&(x, y): &(f32, f32)| {
            let (width, height) = (fit.width as f32, fit.height as f32);
            (
                left as f32 + within(x * width, margin, width),
                within(y * height, margin, height),
            )
        };
        let mut path = PathBuilder::new();
        let mut corners = Vec::new();
        for l in &loops {
            let points: Vec<(f32, f32)> = l.points.iter().map(place).collect();
            add_curve(&mut path, &points);
            if l.area >= SMALLEST_BADGED * whole {
                let nearest = points
                    .iter()
                    .min_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1)));
                corners.extend(nearest);
            }
        }
        Some(Self {
            path: path.finish()?,
            colour: item.colour?,
            number: item.number,
            corners,
            ring: 0,
            dash: None,
        })
    }

    fn draw_glow(&self, canvas: &mut Pixmap, unit: f32) {
        for step in 1..=GLOW_STEPS {
            let mut colour = self.colour;
            colour.set_alpha(GLOW / GLOW_STEPS as f32);
            self.stroke(
                canvas,
                colour,
                (1.0 + 0.8 * step as f32) * outline_width(unit),
            );
        }
    }

    fn draw_outline(&self, canvas: &mut Pixmap, unit: f32) {
        let width = outline_width(unit);
        let line = width * (1.0 + 2.5 * self.ring as f32);
        // A dark rim keeps the outline apart from others and from an object of its own colour.
        self.stroke(
            canvas,
            Color::from_rgba8(0, 0, 0, 170),
            line + (0.10 * unit).max(2.0),
        );
        self.stroke(canvas, self.colour, line);
        if self.ring > 0 {
            let gap = Color::from_rgba8(0, 0, 0, 190);
            self.stroke(canvas, gap, line - 2.0 * width);
        }
    }

    fn stroke(&self, canvas: &mut Pixmap, colour: Color, width: f32) {
        let stroke = Stroke {
            width,
            line_cap: LineCap::Round,
            line_join: LineJoin::Round,
            dash: self.dash.clone(),
            ..Stroke::default()
        };
        let still = Transform::identity();
        canvas.stroke_path(&self.path, &paint(colour), &stroke, still, None);
    }
}

fn outline_width(unit: f32) -> f32 {
    0.15 * unit
}

/// Moves a coordinate to `margin` from both ends of `side` at least, or to the middle if that is too narrow.
fn within(at: f32, margin: f32, side: f32) -> f32 {
    at.clamp(margin.min(side / 2.0), (side - margin).max(side / 2.0))
}

/// Whether most of one object belongs to the other.
fn overlap(a: &Field<'_>, b: &Field<'_>) -> bool {
    let area = |field: &Field<'_>| field.bits().filter(|&bit| bit).count();
    let both = a.bits().zip(b.bits()).filter(|(a, b)| *a && *b).count();
    2 * both > area(a).min(area(b))
}

/// Adds a closed curve that runs smoothly between the midpoints of a loop's edges.
fn add_curve(path: &mut PathBuilder, points: &[(f32, f32)]) {
    let middle = |a: (f32, f32), b: (f32, f32)| ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        return;
    };
    // A few corners are a shape of few pixels: round, it would be gone.
    if points.len() <= 8 {
        path.move_to(first.0, first.1);
        points[1..].iter().for_each(|p| path.line_to(p.0, p.1));
    } else {
        let start = middle(last, first);
        path.move_to(start.0, start.1);
        for (i, &point) in points.iter().enumerate() {
            let end = middle(point, points[(i + 1) % points.len()]);
            path.quad_to(point.0, point.1, end.0, end.1);
        }
    }
    path.close();
}

/// Paints the picture: dimmed everywhere, or bright where `bright` covers it.
fn paint_picture(
    canvas: &mut Pixmap,
    picture: &Image,
    left: u32,
    bright: Option<&tiny_skia::Mask>,
) {
    let stride = canvas.width() as usize;
    let columns = picture.width() as usize;
    let rows = picture.pixels().chunks_exact(3 * columns);
    for (y, row) in rows.enumerate() {
        let start = y * stride + left as usize;
        let (colours, _) = row.as_chunks::<3>();
        let pixels = &mut canvas.pixels_mut()[start..start + columns];
        for (x, (pixel, &colour)) in pixels.iter_mut().zip(colours).enumerate() {
            let painted = match bright {
                None => dimmed(colour),
                Some(mask) => match mask.data()[start + x] {
                    0 => continue,
                    cover => {
                        let below = [pixel.red(), pixel.green(), pixel.blue()];
                        mixed(below, colour, f32::from(cover) / 255.0)
                    }
                },
            };
            let [red, green, blue] = painted;
            let opaque = PremultipliedColorU8::from_rgba(red, green, blue, 255);
            *pixel = opaque.unwrap_or(*pixel);
        }
    }
}

fn dimmed(colour: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = colour.map(f32::from);
    let grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    [red, green, blue].map(|c| ((grey + (c - grey) * SATURATION) * BRIGHTNESS).round() as u8)
}

fn mixed(below: [u8; 3], above: [u8; 3], share: f32) -> [u8; 3] {
    let mix = |i: usize| f32::from(below[i]) * (1.0 - share) + f32::from(above[i]) * share;
    [0, 1, 2].map(|i| mix(i).round() as u8)
}

/// Puts each phrase's number on its pieces, beside the others where they would meet.
fn draw_badges(canvas: &mut Pixmap, shapes: &[Shape], unit: f32, height: f32) {
    let radius = 0.62 * unit;
    let width = canvas.width() as f32;
    let mut taken: Vec<(f32, f32)> = Vec::new();
    for shape in shapes {
        let Some(number) = shape.number else { continue };
        for &(x, y) in &shape.corners {
            let (mut x, y) = (within(x, radius, width), within(y, radius, height));
            let meets = |x: f32| {
                let near = |p: &&(f32, f32)| (p.0 - x).hypot(p.1 - y) < 2.0 * radius;
                taken.iter().find(near).map(|p| p.0)
            };
            while let Some(other) = meets(x).filter(|_| x + radius < width) {
                x = other + 2.15 * radius;
            }
            taken.push((x, y));
            let rim = Chip {
                centre: (x, y),
                radius: radius + (0.06 * unit).max(1.0),
                number: None,
            };
            rim.draw(canvas, Color::from_rgba8(0, 0, 0, 170));
            let badge = Chip {
                centre: (x, y),
                radius,
                number: Some(number),
            };
            badge.draw(canvas, shape.colour);
        }
    }
}

fn clear_below(canvas: &mut Pixmap, top: u32) {
    let [red, green, blue] = legend::PANEL;
    let start = (canvas.width() * top) as usize;
    if let Some(panel) = PremultipliedColorU8::from_rgba(red, green, blue, 255) {
        canvas.pixels_mut()[start..].fill(panel);
    }
}

fn to_image(canvas: &Pixmap) -> Result<Image, ImageError> {
    let pixels = canvas.pixels().iter();
    let bytes = pixels
        .flat_map(|p| [p.red(), p.green(), p.blue()])
        .collect();
    Image::from_rgb(canvas.width(), canvas.height(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: u32, height: u32) -> Image {
        let bytes = vec![200; (width * height * 3) as usize];
        Image::from_rgb(width, height, bytes).expect("bytes for every pixel")
    }

    fn square(side: usize, cells: std::ops::Range<usize>) -> Vec<f32> {
        let inside = |i: usize| cells.contains(&(i % side)) && cells.contains(&(i / side));
        (0..side * side)
            .map(|i| if inside(i) { 1.0 } else { 0.0 })
            .collect()
    }

    fn pixel(image: &Image, x: u32, y: u32) -> &[u8] {
        &image.pixels()[((y * image.width() + x) * 3) as usize..][..3]
    }

    #[test]
    fn objects_stay_as_they_are_and_the_rest_is_dimmed() {
        let values = square(64, 20..40);
        let entry = Entry {
            phrase: "the square",
            found: Some(Field {
                values: &values,
                side: 64,
            }),
        };
        let overlay = draw(&grey(640, 640), &[entry]).expect("an overlay");
        assert_eq!(pixel(&overlay, 300, 300), [200; 3]);
        assert_eq!(pixel(&overlay, 50, 50), [80; 3]);
        assert_eq!(pixel(&overlay, 300, 200), PALETTE[0]);
        assert!(overlay.height() > 640);
    }

    #[test]
    fn outlines_of_one_object_lie_around_each_other() {
        let values = square(64, 20..40);
        let entry = || Entry {
            phrase: "it",
            found: Some(Field {
                values: &values,
                side: 64,
            }),
        };
        let overlay = draw(&grey(640, 640), &[entry(), entry()]).expect("an overlay");
        let column: Vec<&[u8]> = (180..220).map(|y| pixel(&overlay, 300, y)).collect();
        assert!(column.contains(&&PALETTE[0][..]) && column.contains(&&PALETTE[1][..]));
    }

    #[test]
    fn any_size_of_picture_and_any_number_of_phrases_can_be_drawn() {
        for (width, height) in [(1, 1), (1, 9000), (9000, 2), (319, 7), (4097, 40)] {
            let fields = [Some(&[1.0; 16]), None, Some(&[0.0; 16])];
            let entries: Vec<Entry<'_>> = fields
                .into_iter()
                .cycle()
                .take(30)
                .map(|values| Entry {
                    phrase: "",
                    found: values.map(|values| Field { values, side: 4 }),
                })
                .collect();
            let overlay = draw(&grey(width, height), &entries).expect("an overlay");
            assert!(overlay.width() >= NARROWEST && overlay.width() <= LONGEST);
        }
    }

    #[test]
    fn small_pictures_are_enlarged_by_whole_numbers() {
        let drawn = |width, height| {
            let fit = Fit::of(width, height);
            (fit.width, fit.height)
        };
        assert_eq!(drawn(112, 100), (672, 600));
        assert_eq!(drawn(512, 200), (512, 200));
        assert_eq!(drawn(8192, 1), (4096, 1));
    }
}
