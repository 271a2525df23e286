//! Results of steps: tokens, scores and vectors go to their sequences, failures end them.

use super::*;
use crate::engine::event::EngineError;
use crate::engine::executor::{RowOut, Scored, StepOutput};

impl Scheduler {
    /// Takes in the result of the oldest step in flight.
    pub fn update(&mut self, output: StepOutput, events: &mut Vec<SeqEvent>) {
        let Some(record) = self.steps.pop_front() else { return };
        if output.rows.len() != record.rows.len() {
            let message = format!("{} results for {} rows", output.rows.len(), record.rows.len());
            return self.fail_record(record, &message, events);
        }
        events.reserve(record.rows.len());
        let mut scores = output.scores.into_iter().peekable();
        for (index, (row, out)) in record.rows.iter().zip(output.rows).enumerate() {
            let scored = scores.next_if(|(of, _)| *of == index).map(|(_, scored)| scored);
            if !self.is_current(row) {
                self.counters.discarded_rows += 1;
                continue;
            }
            self.update_row(row, out, scored.unwrap_or_default(), events);
        }
        self.spare.push(record);
    }

    /// Fails the sequences of the step just scheduled: it did not start.
    pub fn fail_newest(&mut self, message: &str, events: &mut Vec<SeqEvent>) {
        if let Some(record) = self.steps.pop_back() {
            self.fail_record(record, message, events);
        }
    }

    /// Fails the sequences of the oldest step in flight.
    pub fn fail_oldest(&mut self, message: &str, events: &mut Vec<SeqEvent>) {
        if let Some(record) = self.steps.pop_front() {
            self.fail_record(record, message, events);
        }
    }

    fn update_row(&mut self, row: &RowRecord, out: RowOut, scored: Vec<Scored>, events: &mut Vec<SeqEvent>) {
        let seq = self.seqs[row.slot].as_deref_mut().expect("the row is current");
        let mut emit = |event| events.push(SeqEvent { seq: row.seq, slot: row.slot, event });
        let matches = match &out {
            RowOut::None => matches!(row.returns, Returns::Nothing | Returns::End),
            RowOut::Tokens(tokens) => row.returns == Returns::Token && (1..=1 + row.drafts).contains(&tokens.len()),
            RowOut::Pooled(_) => row.returns == Returns::Pooled,
            RowOut::Failed(_) => false,
        };
        if !matches || scored.len() != row.scores.len() {
            let message = match out {
                RowOut::Failed(message) => message,
                _ => "the executor's result is not what the row wanted".to_owned(),
            };
            emit(Event::Failed(match seq.guide.as_ref().and_then(|guide| guide.stuck()) {
                Some(reason) => EngineError::Constraint(reason.to_owned()),
                None => EngineError::Row(message),
            }));
            self.counters.failed += 1;
            return self.remove(row.slot);
        }
        if !scored.is_empty() {
            seq.num_scored = row.scores.end;
            emit(Event::PromptLogprobs(scored));
        }
        let mut computed = row.end;
        let mut finished = (row.returns == Returns::End).then_some(FinishReason::Length);
        match out {
            RowOut::Tokens(mut tokens) => {
                let known = seq.tokens.len();
                for sampled in tokens.drain(..) {
                    let token = sampled.token;
                    seq.tokens.push(token);
                    emit(Event::Token(sampled));
                    finished = seq.finish_reason();
                    if finished.is_some() {
                        break;
                    }
                    if let Some(Err(reason)) = seq.guide.as_mut().map(|guide| guide.accept(token)) {
                        emit(Event::Failed(EngineError::Constraint(reason)));
                        self.counters.failed += 1;
                        return self.remove(row.slot);
                    }
                }
                let new = &seq.tokens[known..];
                if let Some(lookup) = &mut seq.lookup {
                    lookup.learn(new);
                }
                // All but the last were drafts, and are computed.
                let accepted = new.len() - 1;
                self.counters.generation_tokens += new.len() as u64;
                self.counters.accepted_draft_tokens += accepted as u64;
                computed += accepted;
                seq.num_computed += accepted;
                seq.in_flight -= 1;
                if row.drafts > 0 {
                    self.pool.truncate(&mut seq.table, seq.num_computed.div_ceil(BLOCK_SIZE));
                }
            }
            RowOut::Pooled(pooled) => {
                emit(Event::Pooled(pooled));
                finished = Some(FinishReason::Length);
            }
            RowOut::None | RowOut::Failed(_) => {}
        }
        if self.config.enable_prefix_caching {
            register_blocks(&mut self.pool, seq, computed);
        }
        if let Some(reason) = finished {
            emit(Event::Finished(reason));
            match reason {
                FinishReason::Stop => self.counters.finished_stop += 1,
                FinishReason::Length => self.counters.finished_length += 1,
            }
            self.remove(row.slot);
        }
    }

    fn fail_record(&mut self, record: StepRecord, message: &str, events: &mut Vec<SeqEvent>) {
        for row in &record.rows {
            if !self.is_current(row) {
                self.counters.discarded_rows += 1;
                continue;
            }
            let event = Event::Failed(EngineError::Step(message.to_owned()));
            events.push(SeqEvent { seq: row.seq, slot: row.slot, event });
            self.counters.failed += 1;
            self.remove(row.slot);
        }
        self.spare.push(record);
    }
}

/// Registers the blocks that are full of positions before `end`, now known to be computed.
fn register_blocks(pool: &mut BlockPool, seq: &mut Sequence, end: usize) {
    let (blocks, _) = seq.tokens[..end].as_chunks::<BLOCK_SIZE>();
    for (chunk, &id) in blocks.iter().zip(seq.table.blocks()).skip(seq.num_registered) {
        seq.prefix = pool.register(id, seq.prefix, chunk);
        seq.num_registered += 1;
    }
}
