//! `lima eval`: does it answer better? Generates answers, has them judged, and counts.
//!
//! Everything that is asked of a model goes through [`ask`], which keeps each reply in a [`store`] that is only ever
//! appended to: a command that was killed goes on where it was, and what was asked once is not asked again. From
//! replies to numbers there is no state: [`judge`] writes the question and reads the verdict, [`stats`] counts, and
//! [`report`] shows.

pub mod ablate;
pub mod agreement;
pub mod answers;
pub mod ask;
mod error;
pub mod flags;
pub mod generate;
pub mod human;
pub mod judge;
pub mod local;
pub mod pairwise;
pub mod prompts;
pub mod report;
mod run;
pub mod score;
pub mod select;
pub mod stats;
pub mod store;

pub use error::EvalError;
pub use flags::Options;
pub use run::run;
