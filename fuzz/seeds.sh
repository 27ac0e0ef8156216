#!/usr/bin/env bash
# Fills corpus/ with the library's small test fixtures, so that fuzzing starts from files that
# are read all the way through. Run it again at any time: inputs that fuzzing found stay.
set -euo pipefail
cd "$(dirname "$0")"
fixtures=../crates/refseg/tests/fixtures
data=../crates/refseg-data/tests/fixtures
mkdir -p corpus/{image_decode,weights_header,tokenizer,rle,predictions,refs_pickle,answers}

# Copies files under a name that says which folder they come from.
seed() {
    local target=$1 file
    shift
    for file in "$@"; do
        cp "$file" "corpus/$target/$(basename "$(dirname "$file")")-$(basename "$file")"
    done
}

seed image_decode "$fixtures"/images/*.{jpg,png,webp,gif}

seed weights_header "$fixtures"/weights/*.{bin,pt}
# safetensors: the length of the header in eight bytes, the header, the values.
safetensors() {
    local name=$1 header=$2 values=$3
    printf '%b%s%b' "\\x$(printf '%02x' "${#header}")\\0\\0\\0\\0\\0\\0\\0" "$header" "$values" \
        >"corpus/weights_header/$name.safetensors"
}
safetensors one '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' '\0\0\x80\x3f'
safetensors half '{"a":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}' '\0\x3c\0\xbc'
safetensors scalar '{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}' '\x80\x3f'
safetensors none '{"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}' ''
safetensors nan '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' '\0\0\xc0\x7f'
safetensors lora '{"m.base_layer.weight":{"dtype":"F16","shape":[1,1],"data_offsets":[0,2]},"m.lora_A.default.weight":{"dtype":"F16","shape":[1,1],"data_offsets":[2,4]},"m.lora_B.default.weight":{"dtype":"F16","shape":[1,1],"data_offsets":[4,6]}}' '\0\x3c\0\x3c\0\x3c'

seed tokenizer "$fixtures"/mllmseg-qwen2-res/tokenizer.json \
    "$fixtures"/mllmseg-internlm2-gres-lora/tokenizer.model "$fixtures"/tokenizer/odd.model
printf '%s' 'the second star from the left, [SEG] and <|im_start|>' >corpus/tokenizer/words.txt
printf '%b' 'caf\xc3\xa9 \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xf0\x9f\xa7\xa2\0\n\t  x' >corpus/tokenizer/scripts.txt

# Run-length codes: height and width in two bytes each, low byte first, then the code.
rle() {
    local name=$1 size=$2 code=$3
    printf '%b%s' "$size" "$code" >"corpus/rle/$name"
}
rle background '\x03\0\x04\0' '<'
rle foreground '\x03\0\x04\0' '0<'
rle few '\x03\0\x04\0' '5230'
rle stripes '\x3c\0\x50\0' 'Rc0d0X1000Zm3'
rle large-background '\x3c\0\x50\0' 'Pf4'

# Lines of predictions: refseg's own, and those of other systems.
printf '%s' '{"picture":"7","expression":"12","phrase":"the mug","found":true,"presence":0.98,"score":0.91,"rle":{"size":[3,4],"counts":"5230"},"rec_box":[1,0,3,2],"I":3,"U":6,"predicted":3,"truth":6,"ms":12.3}' >corpus/predictions/own.json
printf '%s' '{"id":13,"found":false,"rle":{"size":[2,3],"counts":[2,2,2]}}' >corpus/predictions/lengths.json
printf '%s' '{"image":"7","phrase":"a cup","rle":null}' >corpus/predictions/nothing.json

seed refs_pickle "$data"/pickles/*.p "$data"/mini-refcoco/refer_seg/*/*refs*
printf '%b' 'cos\nsystem\n(S'"'true'"'\ntR.' >corpus/refs_pickle/code.p
printf '%b' ']q\0]q\01h\0ah\0a]q\02h\01ah\01a.' >corpus/refs_pickle/shared.p
printf '%b' 'X\xff\xff\xff\xffab' >corpus/refs_pickle/long.p

# Answers of a language model that prompts Segment Anything.
printf '%s' '[281,251,863,999] [000,010,020,030]' >corpus/answers/boxes.txt
printf '%s' '[281,251,863,999](300,400,1)(500,600,1)(010,020,0)' >corpus/answers/object.txt
printf '%s' 'No object found.' >corpus/answers/nothing.txt
printf '%s' 'NoNoYesNo' >corpus/answers/labels.txt
printf '%s' '[863,251,281,999] [1000,2,3,4] [5,6,7' >corpus/answers/damaged.txt

for target in corpus/*; do
    echo "$(find "$target" -type f | wc -l) inputs in fuzz/$target"
done
