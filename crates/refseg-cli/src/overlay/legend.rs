//! The strip below the picture that says which colour is which phrase.

use tiny_skia::{Color, FillRule, Paint, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::text::Lettering;

/// One phrase in the legend.
pub(super) struct Item<'a> {
    /// The phrase as it was asked.
    pub(super) phrase: &'a str,
    /// Its colour, or `None` if nothing was found.
    pub(super) colour: Option<Color>,
    /// What its chip says; nothing when there is a single phrase.
    pub(super) number: Option<usize>,
}

/// A legend, laid out for a width.
pub(super) struct Legend<'a> {
    letters: Lettering,
    small: Lettering,
    unit: f32,
    lines: Vec<Vec<Placed<'a>>>,
    /// Phrases that no line is left for.
    omitted: usize,
}

struct Placed<'a> {
    item: &'a Item<'a>,
    text: String,
    left: f32,
}

/// The strip's background.
pub(super) const PANEL: [u8; 3] = [17, 19, 23];
const TEXT: [u8; 3] = [236, 238, 241];
const FAINT: [u8; 3] = [128, 134, 144];
const NOT_FOUND: &str = "not found";
/// More phrases than fit into this many lines are counted, not listed.
const MOST_LINES: usize = 20;

// Lengths in units of the text size.
const PADDING: f32 = 0.9;
const LINE: f32 = 1.9;
const CHIP: f32 = 1.3;
const CHIP_GAP: f32 = 0.5;
const ITEM_GAP: f32 = 1.7;
const NOTE_GAP: f32 = 0.55;

impl<'a> Legend<'a> {
    /// Lays out items in lines of at most `width` pixels, with text of `unit` pixels.
    pub(super) fn new(items: &'a [Item<'a>], width: f32, unit: f32) -> Self {
        let letters = Lettering::new(unit);
        let small = Lettering::new(0.82 * unit);
        let room = width - 2.0 * PADDING * unit;
        let note = NOTE_GAP * unit + small.width(NOT_FOUND);
        let mut lines: Vec<Vec<Placed<'a>>> = Vec::new();
        let mut left = 0.0;
        let mut listed = 0;
        for item in items {
            let aside = (CHIP + CHIP_GAP) * unit + if item.colour.is_none() { note } else { 0.0 };
            let text = letters.shortened(&on_one_line(item.phrase), room - aside);
            let needed = aside + letters.width(&text);
            if lines.is_empty() || left + needed > room {
                if lines.len() == MOST_LINES {
                    break;
                }
                lines.push(Vec::new());
                left = 0.0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(Placed { item, text, left });
            }
            listed += 1;
            left += needed + ITEM_GAP * unit;
        }
        let omitted = items.len() - listed;
        Self {
            letters,
            small,
            unit,
            lines,
            omitted,
        }
    }

    /// Height of the strip in pixels.
    pub(super) fn height(&self) -> u32 {
        let lines = self.lines.len() + usize::from(self.omitted > 0);
        ((2.0 * PADDING - 0.5 + LINE * lines as f32) * self.unit).ceil() as u32
    }

    /// Draws the legend below `top`.
    pub(super) fn draw(&self, canvas: &mut Pixmap, top: f32) {
        let unit = self.unit;
        let mut middle = top + (PADDING - 0.25 + LINE / 2.0) * unit;
        for line in &self.lines {
            for placed in line {
                self.draw_item(canvas, placed, middle);
            }
            middle += LINE * unit;
        }
        if self.omitted > 0 {
            let text = format!("and {} more", self.omitted);
            let at = (PADDING * unit, middle + self.small.cap_height() / 2.0);
            self.small.write(canvas, at, rgb(FAINT), &text);
        }
    }

    fn draw_item(&self, canvas: &mut Pixmap, placed: &Placed<'_>, middle: f32) {
        let unit = self.unit;
        let radius = CHIP / 2.0 * unit;
        let left = PADDING * unit + placed.left;
        let chip = Chip {
            centre: (left + radius, middle),
            radius,
            number: placed.item.number,
        };
        match placed.item.colour {
            Some(colour) => chip.draw(canvas, colour),
            None => chip.draw_hollow(canvas, rgb(FAINT)),
        }
        let x = left + (CHIP + CHIP_GAP) * unit;
        let baseline = middle + self.letters.cap_height() / 2.0;
        let found = placed.item.colour.is_some();
        let ink = rgb(if found { TEXT } else { FAINT });
        self.letters.write(canvas, (x, baseline), ink, &placed.text);
        if !found {
            let width = self.letters.width(&placed.text);
            let line = Rect::from_xywh(x, middle - 0.02 * unit, width, (0.07 * unit).max(1.0));
            if let Some(line) = line {
                canvas.fill_rect(line, &paint(ink), Transform::identity(), None);
            }
            let x = x + width + NOTE_GAP * unit;
            self.small.write(canvas, (x, baseline), ink, NOT_FOUND);
        }
    }
}

/// The coloured disc that ties a phrase to its outline.
pub(super) struct Chip {
    /// Centre `(x, y)` in pixels.
    pub(super) centre: (f32, f32),
    /// Radius in pixels.
    pub(super) radius: f32,
    /// What it says.
    pub(super) number: Option<usize>,
}

impl Chip {
    /// Draws it filled, its number in a dark ink that every colour carries.
    pub(super) fn draw(&self, canvas: &mut Pixmap, colour: Color) {
        let (x, y) = self.centre;
        if let Some(disc) = PathBuilder::from_circle(x, y, self.radius) {
            let (rule, still) = (FillRule::Winding, Transform::identity());
            canvas.fill_path(&disc, &paint(colour), rule, still, None);
        }
        self.write_number(canvas, rgb(PANEL));
    }

    fn draw_hollow(&self, canvas: &mut Pixmap, colour: Color) {
        let (x, y) = self.centre;
        let width = (0.12 * self.radius).max(1.0);
        if let Some(ring) = PathBuilder::from_circle(x, y, self.radius - width / 2.0) {
            let stroke = Stroke {
                width,
                ..Stroke::default()
            };
            canvas.stroke_path(&ring, &paint(colour), &stroke, Transform::identity(), None);
        }
        self.write_number(canvas, colour);
    }

    fn write_number(&self, canvas: &mut Pixmap, ink: Color) {
        let Some(number) = self.number else { return };
        let text = number.to_string();
        // Three digits have to fit the disc, too.
        let size = self.radius * [1.25, 1.1, 0.85][text.len().clamp(1, 3) - 1];
        let letters = Lettering::new(size);
        let x = self.centre.0 - letters.width(&text) / 2.0;
        let y = self.centre.1 + letters.cap_height() / 2.0;
        letters.write(canvas, (x, y), ink, &text);
    }
}

/// An opaque colour.
pub(super) fn rgb([red, green, blue]: [u8; 3]) -> Color {
    Color::from_rgba8(red, green, blue, 255)
}

/// A smooth, plain paint.
pub(super) fn paint(colour: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color(colour);
    paint.anti_alias = true;
    paint
}

/// A phrase is the user's: line breaks and other control characters become spaces.
fn on_one_line(phrase: &str) -> String {
    let words = phrase.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(phrase: &str) -> Item<'_> {
        Item {
            phrase,
            colour: None,
            number: None,
        }
    }

    #[test]
    fn phrases_flow_into_lines_and_none_is_too_long() {
        let long = "a very long phrase ".repeat(20);
        let items = [item("one"), item("two"), item(&long)];
        let legend = Legend::new(&items, 400.0, 16.0);
        let lines: Vec<usize> = legend.lines.iter().map(Vec::len).collect();
        assert_eq!(lines, [2, 1]);
        assert!(legend.lines[1][0].text.ends_with('…'));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let items: Vec<Item<'_>> = (0..90).map(|_| item("the same phrase again")).collect();
        let legend = Legend::new(&items, 300.0, 16.0);
        assert_eq!(legend.lines.len(), MOST_LINES);
        let listed: usize = legend.lines.iter().map(Vec::len).sum();
        assert_eq!(legend.omitted, 90 - listed);
    }

    #[test]
    fn control_characters_leave_no_trace() {
        assert_eq!(on_one_line(" a\tb\u{1b}[31m\nc "), "a b [31m c");
    }
}
