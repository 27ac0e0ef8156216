//! Any bytes, taken for a safetensors file and for a PyTorch checkpoint: an error or tensors
//! whose values are as many as their shapes say, never a panic, never more memory than the file
//! accounts for.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use refseg::weights::Weights;

/// Tensors of which the values are read too, so that one input stays quick.
const READ: usize = 32;

fuzz_target!(|data: &[u8]| {
    // The extension decides which reader gets the file.
    for extension in [".safetensors", ".bin"] {
        let mut file = tempfile::Builder::new()
            .suffix(extension)
            .tempfile()
            .expect("the temporary folder is writable");
        file.write_all(data)
            .expect("the temporary folder is writable");
        let Ok(weights) = Weights::open_file(file.path()) else {
            continue;
        };
        for key in weights.keys().take(READ) {
            let info = weights.info(key).expect("a listed tensor has an entry");
            let count: usize = info.shape.iter().product();
            if let Ok(values) = weights.read_f32(key, &info.shape, "the file's own header") {
                assert_eq!(values.len(), count, "{key}");
                assert!(
                    values.iter().all(|value| value.is_finite()),
                    "{key} is not finite"
                );
            }
        }
    }
});
