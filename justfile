# Run `just` for the list of recipes.

_default:
    @just --list

# What CI runs: format, clippy with warnings denied, documentation, tests, the README's main command.
check:
    .ci/run

# All tests.
test *arguments:
    cargo test --release --workspace {{ arguments }}

# Formats every crate, those outside the workspace included.
fmt:
    cargo fmt --all
    rustfmt --edition 2024 fuzz/fuzz_targets/*.rs benches/*.rs

# The documentation, opened in a browser.
docs:
    cargo doc --release --workspace --no-deps --open

# Benchmarks; model: `builtin` or a folder such as `refseg init` writes.
bench model="builtin" *arguments:
    REFSEG_BENCH_MODEL="{{ if model == "builtin" { model } else { absolute_path(model) } }}" cargo bench --manifest-path benches/Cargo.toml {{ arguments }}

# Fuzzes a target: image_decode, weights_header, tokenizer, rle, predictions, refs_pickle or answers. Needs cargo-fuzz and a nightly toolchain.
fuzz target seconds="300":
    fuzz/seeds.sh
    cargo +nightly fuzz run {{ target }} -- -max_total_time={{ seconds }}

# Licences and advisories of the dependencies. Needs cargo-deny.
deny:
    cargo deny check
