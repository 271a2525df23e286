//! Which of two answers is better.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{fill, last_line};
use crate::eval::answers::Answer;
use crate::eval::ask::message;

/// How the judge is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// The paper's prompt (figure 11), word for word, as its human annotators and GPT-4 got it
    Lima,
    /// As MT-Bench's pair-v2 asks: an explanation, then `[[A]]`, `[[B]]` or `[[C]]`
    Mt,
    /// As Arena-Hard asks: an answer of the judge's own first, then `[[A>>B]]` to `[[B>>A]]`
    Arena,
}

/// A place in the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The first answer.
    A,
    /// The second.
    B,
    /// Neither is better.
    Tie,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Who is better.
    pub side: Side,
    /// By far, where the style tells.
    pub strong: bool,
}

/// Figure 11 of arXiv 2305.11206.
const LIMA: &str = "\
Imagine that you have a super-intelligent AI assistant, and that you require help with the following question. \
Which answer best satisfies your needs?
Question: {question}
Answer A:
{a}
Answer B:
{b}
Comparing these two answers, which answer is better?
◼ Answer A is significantly better.
◼ Answer B is significantly better.
◼ Neither is significantly better.";

/// In the manner of MT-Bench's pair-v2; the words are ours, the frame and the verdicts are its.
const MT_SYSTEM: &str = "\
You are an impartial judge of two AI assistants that answer the same user. Decide whose answer follows the user's \
instructions better and is the more helpful, relevant, accurate, deep, creative and detailed. First compare the two \
answers in a short explanation. The order in which the answers are shown, their length and the assistants' names must \
not matter to you. Be as objective as you can. After the explanation give your verdict in exactly this form: \"[[A]]\" if \
assistant A is better, \"[[B]]\" if assistant B is better, \"[[C]]\" for a tie.";

const MT: &str = "\
[User Question]
{question}

[The Start of Assistant A's Answer]
{a}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{b}
[The End of Assistant B's Answer]";

/// In the manner of Arena-Hard; the words are ours, the frame and the labels are its.
const ARENA_SYSTEM: &str = "\
You are an impartial judge of the answers that two AI assistants give to the user prompt below. Begin by answering the \
prompt yourself. Then compare both assistants' answers with yours, and name and correct what is wrong in them. Ask \
whether an answer is helpful (it does what the prompt asks, or asks back where the prompt can be read in several ways), \
relevant (all of it belongs to what was asked) and concise (clear, without padding); then, where it matters, whether it \
is creative; last, what it leaves out that the user should know. After your explanation give one of these labels as the \
verdict:

1. Assistant A is significantly better: [[A>>B]]
2. Assistant A is slightly better: [[A>B]]
3. Tie, about the same: [[A=B]]
4. Assistant B is slightly better: [[B>A]]
5. Assistant B is significantly better: [[B>>A]]

For example: \"My final verdict is tie: [[A=B]]\".";

const ARENA: &str = "\
<|User Prompt|>
{question}

<|The Start of Assistant A's Answer|>
{a}
<|The End of Assistant A's Answer|>

<|The Start of Assistant B's Answer|>
{b}
<|The End of Assistant B's Answer|>";

impl Style {
    /// What the judge gets: the answer shown first, and the other. `system` replaces the style's own instructions.
    pub fn messages(self, first: &Answer, second: &Answer, system: Option<&str>) -> Vec<Value> {
        let (own, template) = match self {
            Self::Lima => (None, LIMA),
            Self::Mt => (Some(MT_SYSTEM), MT),
            Self::Arena => (Some(ARENA_SYSTEM), ARENA),
        };
        let (question, a, b) = match first.turns.as_slice() {
            [question] => (question.clone(), first.last().to_owned(), second.last().to_owned()),
            // Dialogues are compared as a whole: the user's side, then both dialogues.
            turns => (turns.join("\n\n"), dialogue(first), dialogue(second)),
        };
        let text = fill(template, &[("question", &question), ("a", &a), ("b", &b)]);
        system.or(own).map(|system| message("system", system)).into_iter().chain([message("user", &text)]).collect()
    }

    /// The verdict in a judge's words; `None` where there is none, or more than one.
    pub fn parse(self, text: &str) -> Option<Vote> {
        match self {
            Self::Lima => lima(text),
            Self::Mt => marked(text, |label| match label {
                "A" => Some(Vote { side: Side::A, strong: false }),
                "B" => Some(Vote { side: Side::B, strong: false }),
                "C" => Some(Vote { side: Side::Tie, strong: false }),
                _ => None,
            }),
            Self::Arena => marked(text, |label| match label {
                "A>>B" | "B<<A" => Some(Vote { side: Side::A, strong: true }),
                "A>B" | "B<A" => Some(Vote { side: Side::A, strong: false }),
                "A=B" | "B=A" => Some(Vote { side: Side::Tie, strong: false }),
                "B>A" | "A<B" => Some(Vote { side: Side::B, strong: false }),
                "B>>A" | "A<<B" => Some(Vote { side: Side::B, strong: true }),
                _ => None,
            }),
        }
    }

    /// The texts that a constrained judge chooses from.
    pub fn choices(self) -> &'static [&'static str] {
        match self {
            Self::Lima => &[
                "Answer A is significantly better.",
                "Answer B is significantly better.",
                "Neither is significantly better.",
            ],
            Self::Mt => &["[[A]]", "[[B]]", "[[C]]"],
            Self::Arena => &["[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"],
        }
    }
}

fn dialogue(answer: &Answer) -> String {
    let turn = |(turn, answer): (&String, &String)| format!("User: {turn}\n\nAssistant: {answer}");
    answer.turns.iter().zip(&answer.answers).map(turn).collect::<Vec<_>>().join("\n\n")
}

/// The options of the paper's prompt. A judge that repeats several of them has decided only if its last line is one.
fn lima(text: &str) -> Option<Vote> {
    let sides = |text: &str| {
        let text = text.to_lowercase();
        let says = |options: &[&str]| options.iter().any(|option| text.contains(option));
        let found = [
            (says(&["answer a is significantly better", "answer a is better"]), Side::A),
            (says(&["answer b is significantly better", "answer b is better"]), Side::B),
            (says(&["neither is significantly better", "neither answer is significantly better"]), Side::Tie),
        ];
        found.into_iter().filter(|(is, _)| *is).map(|(_, side)| side).collect::<Vec<_>>()
    };
    let vote = |side| Some(Vote { side, strong: false });
    match sides(text).as_slice() {
        [side] => return vote(*side),
        // All three are an echo of the question, whatever stands last.
        [_, _, _] => return None,
        [_, _] => {
            return match sides(last_line(text)).as_slice() {
                [side] => vote(*side),
                _ => None,
            };
        }
        _ => {}
    }
    let bare = text.trim().trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    match bare.as_str() {
        "a" | "answer a" => vote(Side::A),
        "b" | "answer b" => vote(Side::B),
        "neither" | "tie" => vote(Side::Tie),
        _ => None,
    }
}

/// The label in double brackets, else in single ones; several different ones are no verdict.
fn marked(text: &str, read: impl Fn(&str) -> Option<Vote>) -> Option<Vote> {
    let between = |open: &str, close: &str| {
        let mut found = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once(open) {
            rest = after;
            if let Some((label, _)) = after.split_once(close)
                && let Some(vote) = read(label.trim())
                && !found.contains(&vote)
            {
                found.push(vote);
            }
        }
        found
    };
    let found = Some(between("[[", "]]")).filter(|found| !found.is_empty()).unwrap_or_else(|| between("[", "]"));
    match found.as_slice() {
        [vote] => Some(*vote),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn answer(turns: &[&str], answers: &[&str]) -> Answer {
        let own = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        Answer {
            id: "1".into(),
            category: None,
            turns: own(turns),
            answers: own(answers),
            sample: 0,
            model: String::new(),
            finish_reasons: Vec::new(),
            completion_tokens: Vec::new(),
            params: Map::new(),
        }
    }

    #[test]
    fn the_papers_prompt_word_for_word() {
        let messages = Style::Lima.messages(&answer(&["<Q>"], &["<1>"]), &answer(&["<Q>"], &["<2>"]), None);
        let expected = "Imagine that you have a super-intelligent AI assistant, and that you require help with the \
                        following question. Which answer best satisfies your needs?\nQuestion: <Q>\nAnswer A:\n<1>\n\
                        Answer B:\n<2>\nComparing these two answers, which answer is better?\n\
                        ◼ Answer A is significantly better.\n◼ Answer B is significantly better.\n\
                        ◼ Neither is significantly better.";
        assert_eq!(messages, [json!({"role": "user", "content": expected})]);
    }

    #[test]
    fn other_styles_have_a_system_message_that_can_be_replaced() {
        let (one, two) = (answer(&["q{b}"], &["x"]), answer(&["q{b}"], &["y"]));
        let messages = Style::Mt.messages(&one, &two, None);
        assert_eq!(messages.len(), 2);
        let text = messages[1]["content"].as_str().unwrap();
        assert!(text.starts_with("[User Question]\nq{b}\n\n[The Start of Assistant A's Answer]\nx\n"), "{text}");
        assert_eq!(Style::Arena.messages(&one, &two, Some("own"))[0]["content"], "own");
        let (one, two) = (answer(&["q", "r"], &["x", "y"]), answer(&["q", "r"], &["v", "w"]));
        let text = Style::Lima.messages(&one, &two, None)[0]["content"].as_str().unwrap().to_owned();
        assert!(text.contains("Question: q\n\nr\nAnswer A:\nUser: q\n\nAssistant: x\n\nUser: r\n\nAssistant: y\n"));
    }

    #[test]
    fn verdicts_of_the_paper() {
        let side = |text: &str| Style::Lima.parse(text).map(|vote| vote.side);
        assert_eq!(side("◼ Answer A is significantly better."), Some(Side::A));
        assert_eq!(side("I think that ANSWER B is significantly better, as it is right."), Some(Side::B));
        assert_eq!(side("Neither is significantly better."), Some(Side::Tie));
        assert_eq!(side("Answer A"), Some(Side::A));
        assert_eq!(side(" **B** "), Some(Side::B));
        assert_eq!(side("Not that Answer A is better.\n\nAnswer B is significantly better."), Some(Side::B));
        // An echo, two at once, none.
        let echo = "◼ Answer A is significantly better.\n◼ Answer B is significantly better.\n\
                    ◼ Neither is significantly better.";
        for text in [echo, "Answer A is better, or Answer B is better", "", "Both are fine.", "Answer C", "AB"] {
            assert_eq!(side(text), None, "{text}");
        }
    }

    #[test]
    fn labels_in_brackets() {
        let vote = |side, strong| Some(Vote { side, strong });
        assert_eq!(Style::Mt.parse("… [[A]]"), vote(Side::A, false));
        assert_eq!(Style::Mt.parse("so [C]"), vote(Side::Tie, false));
        assert_eq!(Style::Mt.parse("[[A]] no, [[B]]"), None);
        assert_eq!(Style::Mt.parse("[[A]] yes, [[A]]"), vote(Side::A, false));
        assert_eq!(Style::Mt.parse("[[D]] [["), None);
        assert_eq!(Style::Arena.parse("My final verdict is: [[B>>A]]"), vote(Side::B, true));
        assert_eq!(Style::Arena.parse("[[A=B]]"), vote(Side::Tie, false));
        assert_eq!(Style::Arena.parse("[[A>>B]] [[A>B]]"), None);
        for style in [Style::Lima, Style::Mt, Style::Arena] {
            assert!(style.choices().iter().all(|choice| style.parse(choice).is_some()), "{style:?}");
        }
    }
}
