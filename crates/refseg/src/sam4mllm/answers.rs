//! Reads what the language model answered. Numbers are taken only where they are written as the
//! model was trained to write them; whatever else it says is handed back, not guessed at.
//!
//! Reference: the pattern of `simple_infer.ipynb`, one to three digits, no blanks.

use super::texts::{NO, NO_OBJECT, PromptedObject, YES};
use crate::sam::Label;

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// What could be read, in order.
    pub said: Vec<T>,
    /// Whether it says that there is no object. It may say so beside a box, which then wins.
    pub no_object: bool,
    /// Pieces of text that say nothing, without the blanks around them.
    pub unread: Vec<String>,
}

impl<T> Answer<T> {
    /// Whether all of it could be read, and it says something that does not contradict itself.
    pub fn is_clear(&self) -> bool {
        self.unread.is_empty() && self.no_object == self.said.is_empty()
    }

    /// What makes the answer unclear, empty if nothing does: what could not be read; that there is
    /// no object, beside one; and silence, as an empty text.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.unread.clone();
        match (self.no_object, self.said.is_empty()) {
            (true, false) => remarks.push(NO_OBJECT.to_owned()),
            (false, true) if remarks.is_empty() => remarks.push(String::new()),
            _ => {}
        }
        remarks
    }
}

/// Reads boxes XYXY in thousandths, such as `[281,251,863,999] [000,010,020,030]`.
///
/// Every box that is written is said, also one without area; see [`is_box`](super::is_box).
pub fn read_boxes(text: &str) -> Answer<[i32; 4]> {
    scan(text, |rest| numbers(rest, '[', ']'))
}

/// Reads boxes with points, such as `[281,251,863,999](300,400,1)(500,600,1)(010,020,0)`.
///
/// An object may have any number of points, none included.
pub fn read_objects(text: &str) -> Answer<PromptedObject> {
    scan(text, |rest| {
        let (box_norm, mut rest) = numbers(rest, '[', ']')?;
        let mut points_norm = Vec::new();
        while let Some(([x, y, on], after)) = numbers(rest, '(', ')') {
            let label = match on {
                0 => Label::Background,
                1 => Label::Foreground,
                _ => break,
            };
            points_norm.push(([x, y], label));
            rest = after;
        }
        let object = PromptedObject {
            box_norm,
            points_norm,
        };
        Some((object, rest))
    })
}

/// Reads the answers about points, such as `NoNoYesNo`.
pub fn read_labels(text: &str) -> Answer<Label> {
    scan(text, |rest| {
        let yes = rest.strip_prefix(YES);
        let no = || rest.strip_prefix(NO);
        yes.map(|after| (Label::Foreground, after))
            .or_else(|| no().map(|after| (Label::Background, after)))
    })
}

/// Reads things one after the other, passing over what is none.
fn scan<T>(text: &str, read: impl Fn(&str) -> Option<(T, &str)>) -> Answer<T> {
    let mut answer = Answer {
        said: Vec::new(),
        no_object: false,
        unread: Vec::new(),
    };
    // What lies between the end of the last thing and here has not been read.
    let (mut from, mut here) = (0, 0);
    while here < text.len() {
        if let Some(after) = text[here..].strip_prefix(NO_OBJECT) {
            answer.leave(&text[from..here]);
            answer.no_object = true;
            here = text.len() - after.len();
            from = here;
        } else if let Some((thing, after)) = read(&text[here..]) {
            answer.leave(&text[from..here]);
            answer.said.push(thing);
            here = text.len() - after.len();
            from = here;
        } else {
            here += text[here..].chars().next().map_or(1, char::len_utf8);
        }
    }
    answer.leave(&text[from..]);
    answer
}

impl<T> Answer<T> {
    fn leave(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            self.unread.push(text.to_owned());
        }
    }
}

/// `N` numbers of one to three digits between brackets, at the very beginning; and what follows.
fn numbers<const N: usize>(text: &str, open: char, close: char) -> Option<([i32; N], &str)> {
    let mut rest = text.strip_prefix(open)?;
    let mut numbers = [0; N];
    for (i, number) in numbers.iter_mut().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(',')?;
        }
        // A fourth digit is neither a comma nor a bracket. Without any, there is nothing to parse.
        let digits = rest.bytes().take(3).take_while(u8::is_ascii_digit).count();
        let (written, after) = rest.split_at(digits);
        *number = written.parse().ok()?;
        rest = after;
    }
    Some((numbers, rest.strip_prefix(close)?))
}
