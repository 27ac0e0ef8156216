//! Conversations of SAM4MLLM, held to recorded ones: `tests/fixtures/sam4mllm`.

use std::error::Error;

use serde_json::{Value, json};

use super::template::{ChatTemplate, Layout, Place};
use crate::{
    builtin,
    sam4mllm::{IMAGE, Method, boxes_answer, first_question, second_question},
    tokenizer::{Tokenizer, TokenizerError},
};

const CASES: &str = include_str!("../../tests/fixtures/sam4mllm/pqpp-cases.json");

#[test]
fn llama_3_is_talked_with_as_recorded() -> Result<(), Box<dyn Error>> {
    let template = ChatTemplate::new(tokenizer()?, Layout::Llama3);
    let cases: Value = serde_json::from_str(CASES)?;
    let mut met = 0;
    for case in cases["cases"].as_array().ok_or("no cases")? {
        let ids = match case["group"].as_str() {
            Some("chat") => asked(&template, &case["input"])?,
            Some("chat_training") => taught(&template, &case["input"]["messages"])?,
            _ => continue,
        };
        let text = template.tokenizer.decode(&ids)?;
        assert_eq!(case["expected"]["text"], text, "{}", case["id"]);
        met += 1;
    }
    assert_eq!(met, 3);
    Ok(())
}

/// The conversation up to where the model goes on.
fn asked(template: &ChatTemplate, input: &Value) -> Result<Vec<u32>, Box<dyn Error>> {
    let text = |name: &str| input[name].as_str().ok_or("no text");
    let first = first_question(Method::Pqpp, text("phrase")?, text("count_code")?.parse()?);
    let mut ids = begun(template, &first)?;
    if input["round"] == 2 {
        let box_norm: [i32; 4] = serde_json::from_value(input["box"].clone())?;
        let points: Vec<[i32; 2]> = serde_json::from_value(input["points"].clone())?;
        assert_eq!(text("round1_answer")?, boxes_answer(&[box_norm]));
        ids.extend(template.answer(text("round1_answer")?)?);
        let second = second_question(text("wording")?.parse()?, box_norm, &points);
        ids.extend(template.question(&second, Place::Later)?);
    }
    Ok(ids)
}

/// A whole conversation, as it stands in the official data for training.
fn taught(template: &ChatTemplate, messages: &Value) -> Result<Vec<u32>, Box<dyn Error>> {
    let messages: Vec<[String; 2]> = serde_json::from_value(messages.clone())?;
    let [_, turns @ ..] = &messages[..] else {
        return Err("no messages".into());
    };
    let mut ids = Vec::new();
    for [role, text] in turns {
        ids.extend(match (role.as_str(), ids.is_empty()) {
            // The template itself says where the picture stands.
            ("user", true) => begun(template, text.trim_start_matches(&format!("{IMAGE}\n")))?,
            ("user", false) => template.question(text, Place::Later)?,
            _ => template.answer(text)?,
        });
    }
    Ok(ids)
}

/// The beginning of a conversation, with `<image>` in place of the picture.
fn begun(template: &ChatTemplate, question: &str) -> Result<Vec<u32>, TokenizerError> {
    let image = template.tokenizer.encode(IMAGE)?;
    let question = template.question(question, Place::First)?;
    Ok([template.opening()?, image, question].concat())
}

/// The built-in model's tokenizer with Llama 3's special tokens.
fn tokenizer() -> Result<Tokenizer, Box<dyn Error>> {
    let files = builtin::FILES.iter();
    let (_, bytes) = files
        .clone()
        .find(|(name, _)| *name == "tokenizer.json")
        .ok_or("no file")?;
    let mut json: Value = serde_json::from_slice(bytes)?;
    let added = json["added_tokens"].as_array_mut().ok_or("no tokens")?;
    let first = added
        .iter()
        .filter_map(|token| token["id"].as_u64())
        .max()
        .ok_or("no ids")?;
    let names = [
        "begin_of_text",
        "start_header_id",
        "end_header_id",
        "eot_id",
    ];
    for (id, name) in (first + 1..).zip(names) {
        added.push(json!({
            "id": id, "content": format!("<|{name}|>"), "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }));
    }
    Ok(Tokenizer::from_json_bytes(&serde_json::to_vec(&json)?)?)
}
