//! Any bytes, taken for a line of predictions: an error or an answer whose mask can be measured,
//! and what refseg would have written itself comes back as it was.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use refseg_data::{
    predictions::{Answers, Place, Prediction},
    runs::Runs,
};

fuzz_target!(|line: &[u8]| {
    let place = Place {
        path: Path::new("fuzz.jsonl").into(),
        line: None,
    };
    let answer = Answers::read_line(line, &place);
    if let Ok((_, answer)) = &answer
        && let Some(rle) = &answer.rle
        && let Ok(runs) = Runs::decode(rle)
    {
        let [height, width] = runs.size();
        assert!(runs.area() <= height as u64 * width as u64);
        // A box is found column by column, and a few bytes can claim billions of columns.
        if height * width < 1 << 24 {
            let [x1, y1, x2, y2] = runs.official_box().map(|index| index as usize);
            assert!(x1 <= x2 && x2 < width && y1 <= y2 && y2 < height);
        }
    }
    // JSON has no infinity, but 1e99 becomes one in f32.
    if let Ok(prediction) = serde_json::from_slice::<Prediction>(line)
        && prediction.presence.is_finite()
        && prediction.score.is_finite()
    {
        let text =
            serde_json::to_vec(&prediction).expect("a prediction has nothing that JSON lacks");
        let again: Prediction = serde_json::from_slice(&text).expect("it was just written");
        assert_eq!(again, prediction);
    }
});
