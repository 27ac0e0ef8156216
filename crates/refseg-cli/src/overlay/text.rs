//! Text on a pixmap, in the one font that is part of the program.

use ab_glyph::{Font, FontRef, Glyph, GlyphId, OutlinedGlyph, PxScale, ScaleFont, point};
use tiny_skia::{Color, Pixmap, PremultipliedColorU8};

/// Inter Medium: Latin, Greek and Cyrillic; anything else shows as a box.
const FONT: &[u8] = include_bytes!("../../assets/Inter-Medium.subset.otf");

/// Writes text of one size.
pub(super) struct Lettering {
    font: FontRef<'static>,
    scale: PxScale,
}

impl Lettering {
    /// Text of `size` pixels to the em.
    pub(super) fn new(size: f32) -> Self {
        let font = FontRef::try_from_slice(FONT).expect("the embedded font is a font");
        let units = font.units_per_em().unwrap_or(1000.0);
        let scale = PxScale::from(size * font.height_unscaled() / units);
        Self { font, scale }
    }

    /// Width of a text in pixels.
    pub(super) fn width(&self, text: &str) -> f32 {
        let font = self.font.as_scaled(self.scale);
        self.glyphs(text).map(|id| font.h_advance(id)).sum()
    }

    /// Height of capital letters in pixels: what to centre a line by.
    pub(super) fn cap_height(&self) -> f32 {
        let outline = self.outlined(self.font.glyph_id('H'), 0.0, 0.0);
        outline.map_or(0.0, |outline| outline.px_bounds().height())
    }

    /// The text, or as much of it as fits `width` with an ellipsis.
    pub(super) fn shortened(&self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let font = self.font.as_scaled(self.scale);
        let mut left = width - self.width("…");
        let mut short = String::new();
        for letter in text.chars() {
            left -= font.h_advance(self.font.glyph_id(letter));
            if left < 0.0 {
                break;
            }
            short.push(letter);
        }
        format!("{}…", short.trim_end())
    }

    /// Writes a text with its baseline beginning at `(x, y)`.
    pub(super) fn write(&self, canvas: &mut Pixmap, (x, y): (f32, f32), colour: Color, text: &str) {
        let font = self.font.as_scaled(self.scale);
        let mut x = x;
        for id in self.glyphs(text) {
            if let Some(outline) = self.outlined(id, x, y) {
                blend(canvas, &outline, colour);
            }
            x += font.h_advance(id);
        }
    }

    fn glyphs(&self, text: &str) -> impl Iterator<Item = GlyphId> {
        text.chars().map(|letter| self.font.glyph_id(letter))
    }

    fn outlined(&self, id: GlyphId, x: f32, y: f32) -> Option<OutlinedGlyph> {
        let glyph: Glyph = id.with_scale_and_position(self.scale, point(x, y));
        self.font.outline_glyph(glyph)
    }
}

fn blend(canvas: &mut Pixmap, outline: &OutlinedGlyph, colour: Color) {
    let bounds = outline.px_bounds();
    let (left, top) = (bounds.min.x as i64, bounds.min.y as i64);
    let (width, height) = (i64::from(canvas.width()), i64::from(canvas.height()));
    let ink = [colour.red(), colour.green(), colour.blue()];
    outline.draw(|x, y, coverage| {
        let (x, y) = (left + i64::from(x), top + i64::from(y));
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return;
        }
        let pixel = &mut canvas.pixels_mut()[(y * width + x) as usize];
        let alpha = coverage.clamp(0.0, 1.0) * colour.alpha();
        let mix = |below: u8, ink: f32| {
            (f32::from(below) * (1.0 - alpha) + 255.0 * ink * alpha).round() as u8
        };
        let [red, green, blue] = [pixel.red(), pixel.green(), pixel.blue()];
        // The canvas is opaque, so premultiplied and plain colours are the same.
        let mixed = PremultipliedColorU8::from_rgba(
            mix(red, ink[0]),
            mix(green, ink[1]),
            mix(blue, ink[2]),
            255,
        );
        *pixel = mixed.unwrap_or(*pixel);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shortened_to_its_width() {
        let letters = Lettering::new(20.0);
        let short = letters.shortened("the second star from the left", 120.0);
        assert!(
            short.ends_with('…') && letters.width(&short) <= 120.0,
            "{short}"
        );
        assert_eq!(letters.shortened("ring", 120.0), "ring");
    }

    #[test]
    fn size_is_that_of_the_em() {
        // Inter's capitals are 0.727 em high.
        assert!((Lettering::new(100.0).cap_height() - 73.0).abs() <= 2.0);
    }

    #[test]
    fn letters_beyond_the_edge_are_cut() {
        let mut canvas = Pixmap::new(8, 8).expect("a size above zero");
        canvas.fill(Color::BLACK);
        Lettering::new(30.0).write(&mut canvas, (-9.0, 20.0), Color::WHITE, "W⚑ش");
        assert!(canvas.pixels().iter().any(|pixel| pixel.red() > 100));
    }
}
