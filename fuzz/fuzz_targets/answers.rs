//! Any text, taken for a language model's answer: what is said in it is within bounds and was
//! written there, the rest is handed back, and an answer of our own reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use refseg::sam4mllm::{
    Answer, boxes_answer, labels_answer, objects_answer, read_boxes, read_labels, read_objects,
};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let boxes = read_boxes(text);
    check(&boxes, text, "[0,0,0,0]".len());
    assert!(boxes.said.iter().flatten().all(is_written));
    assert_eq!(read_boxes(&boxes_answer(&boxes.said)).said, boxes.said);

    let objects = read_objects(text);
    check(&objects, text, "[0,0,0,0]".len());
    let of_objects: Vec<[i32; 4]> = objects.said.iter().map(|o| o.box_norm).collect();
    assert_eq!(of_objects, boxes.said, "both read the same boxes");
    let points = objects.said.iter().flat_map(|object| &object.points_norm);
    assert!(points.flat_map(|(point, _)| point).all(is_written));
    assert_eq!(
        read_objects(&objects_answer(&objects.said)).said,
        objects.said
    );

    let labels = read_labels(text);
    check(&labels, text, "No".len());
    assert_eq!(read_labels(&labels_answer(&labels.said)).said, labels.said);
});

/// Three digits say no more.
fn is_written(number: &i32) -> bool {
    (0..1000).contains(number)
}

fn check<T>(answer: &Answer<T>, text: &str, shortest: usize) {
    assert!(answer.said.len() * shortest <= text.len());
    for piece in &answer.unread {
        assert!(!piece.is_empty() && text.contains(piece.as_str()));
    }
}
