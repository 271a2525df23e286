//! What 64 decoding sequences cost a real model: one forward pass a token, and nothing copied out of
//! the pool.

use std::sync::{Arc, Mutex};

use lima::engine::{
    Core, Event, Executor, ExecutorError, Request, SampleInput, SamplingParams, SeqId, StepInput, StepOutput, Ticket,
};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::CpuExecutor;

use crate::support::engine::{MAX_SEQS, Setting};
use crate::support::goldens;

/// An executor that the test can look at while the engine has it.
struct Watched(Arc<Mutex<CpuExecutor>>);

impl Executor for Watched {
    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        self.0.lock().unwrap().forward(step)
    }

    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError> {
        self.0.lock().unwrap().sample(request)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.0.lock().unwrap().collect(ticket)
    }
}

#[test]
fn one_forward_a_token_and_nothing_copied() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    for dtype in [DType::F32, DType::Q4_1] {
        let setting = Setting {
            kv: None,
            dtype,
            level: Level::best(),
            threads: 2,
            max_num_batched_tokens: 512,
            num_blocks: MAX_SEQS * 5,
            prefix_caching: true,
            speculation: lima::engine::Speculation::OFF,
        };
        let executor = Arc::new(Mutex::new(setting.load(&checkpoint)));
        let mut core = Core::new(setting.config().scheduler(), Box::new(Watched(executor.clone())));
        for i in 0..MAX_SEQS as u64 {
            let prompt: Vec<_> = (0..20 + i as u32 % 9).map(|k| (k * 5 + i as u32) % 96).collect();
            let params = SamplingParams { max_tokens: 60, seed: i, temperature: 0.7, ..SamplingParams::default() };
            core.scheduler_mut().add(SeqId(i), Request::generate(prompt, params)).unwrap();
        }
        let mut events = Vec::new();
        let is_decoding = |core: &Core| {
            let rows = &core.last_input().rows;
            rows.len() == MAX_SEQS && rows.iter().all(|r| r.len == 1)
        };
        while !is_decoding(&core) {
            assert!(core.advance(&mut events));
        }
        events.clear();
        let before = executor.lock().unwrap().ops().forwards();
        for _ in 0..40 {
            assert!(core.advance(&mut events));
            assert!(is_decoding(&core));
        }
        let tokens = events.iter().filter(|e| matches!(e.event, Event::Token(_))).count();
        assert_eq!(tokens, 40 * MAX_SEQS);
        assert_eq!(executor.lock().unwrap().ops().forwards() - before, 40, "one forward for 64 tokens");
        while core.advance(&mut events) {}
        let executor = executor.lock().unwrap();
        assert!(events.iter().filter(|e| e.event.is_terminal()).all(|e| matches!(e.event, Event::Finished(_))));
        assert_eq!(core.stats().forwards.load(std::sync::atomic::Ordering::Relaxed), executor.ops().forwards());
    }
}
