//! Any bytes, taken for the references of RefCOCO, pickled or as JSON: an error or references.
//! Nothing is executed, and references take no more memory than a small multiple of the bytes.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use refseg_data::dataset::parse_refs;

fuzz_target!(|data: &[u8]| {
    let Ok(references) = parse_refs(data, Path::new("refs.p")) else {
        return;
    };
    let mut text = 0;
    for reference in references.into_iter().flatten() {
        text += reference.split.len() + 8 * reference.annotation_ids.len();
        text += reference.sentences.iter().map(String::len).sum::<usize>();
    }
    assert!(
        text <= 16 * data.len(),
        "{text} bytes from {} of pickle",
        data.len()
    );
});
