//! Draws a contact sheet of scenes and prints a few phrases of each:
//! `cargo run --release --example contact_sheet [FILE.png] [FIRST_INDEX] [train|held-out|unseen]`.

#![expect(clippy::print_stdout, reason = "an example prints what it drew")]

use std::error::Error;

use refseg_data::scenes::{Scene, SceneOptions, Split};

const COLUMNS: u32 = 6;
const ROWS: u32 = 4;
const BORDER: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or("contact_sheet.png".to_owned());
    let first: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let split = match arguments.next().as_deref() {
        None | Some("train") => Split::Train,
        Some("held-out") => Split::HeldOut,
        Some("unseen") => Split::Unseen,
        Some(other) => return Err(format!("no split `{other}`").into()),
    };
    let options = SceneOptions {
        split,
        ..SceneOptions::default()
    };
    let pitch = options.size + BORDER;
    let mut sheet =
        image::RgbImage::from_pixel(COLUMNS * pitch, ROWS * pitch, image::Rgb([255; 3]));
    let scenes: Vec<Scene> = (first..first + u64::from(COLUMNS * ROWS))
        .map(|index| Scene::draw(&options, index))
        .collect();
    for (number, scene) in (0..).zip(scenes) {
        let (row, column) = (number / COLUMNS, number % COLUMNS);
        for phrase in scene.phrases.iter().take(2) {
            println!(
                "row {} column {}: {} ({}, {:?})",
                row + 1,
                column + 1,
                phrase.text,
                phrase.kind.name(),
                phrase.targets
            );
        }
        let picture = image::RgbImage::from_raw(scene.size, scene.size, scene.pixels)
            .ok_or("a scene has three bytes a pixel")?;
        image::imageops::replace(
            &mut sheet,
            &picture,
            i64::from(column * pitch),
            i64::from(row * pitch),
        );
    }
    sheet.save(&file)?;
    Ok(())
}
