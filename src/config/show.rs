//! The configuration as it is printed.

use std::fmt;

use clap::ValueEnum;

use super::{ByteSize, Config};

impl fmt::Display for Config {
    /// A table, one option a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or(value: &Option<impl fmt::Display>, none: &str) -> String {
            value.as_ref().map_or_else(|| none.into(), ToString::to_string)
        }
        let name = |value: Option<clap::builder::PossibleValue>| value.map_or(String::new(), |v| v.get_name().into());
        let template = self.chat_template.as_ref().map(|p| p.display().to_string());
        let adapters: Vec<&str> = self.lora_modules.iter().map(|m| m.name.as_str()).collect();
        let rows = [
            ("model", self.model.clone()),
            (
                "served-model-name",
                if self.served_model_name.is_empty() {
                    "from the model".into()
                } else {
                    self.served_model_name.join(", ")
                },
            ),
            ("listen", self.listen.to_string()),
            (
                "api-key",
                if self.api_key.0.is_empty() { "none".into() } else { format!("{} given", self.api_key.0.len()) },
            ),
            ("api-key-file", or(&self.api_key_file.as_ref().map(|p| p.display()), "none")),
            ("device", name(self.device.to_possible_value())),
            ("dtype", name(self.dtype.to_possible_value())),
            ("max-model-len", or(&self.max_model_len, "from the model")),
            ("max-num-seqs", self.max_num_seqs.to_string()),
            ("max-num-batched-tokens", self.max_num_batched_tokens.to_string()),
            ("kv-cache-memory", or(&self.kv_cache_memory, "from free memory")),
            ("kv-cache-dtype", name(self.kv_cache_dtype.to_possible_value())),
            ("enable-prefix-caching", self.prefix_caching.to_string()),
            ("num-speculative-tokens", self.num_speculative_tokens.to_string()),
            ("threads", self.threads.to_string()),
            ("tensor-parallel-size", self.tensor_parallel_size.to_string()),
            ("max-queued-requests", self.max_queued_requests.to_string()),
            ("seed", or(&self.seed, "random")),
            ("drain-timeout", format!("{}s", self.drain_timeout.as_secs())),
            ("max-body-size", ByteSize(self.max_body_size as u64).to_string()),
            ("lora-modules", if adapters.is_empty() { "none".into() } else { adapters.join(", ") }),
            ("max-loras", self.max_loras.to_string()),
            ("max-lora-rank", self.max_lora_rank.to_string()),
            ("lora-root", or(&self.lora_root.as_ref().map(|p| p.display()), "none: not at run time")),
            ("chat-template", or(&template, "from the model")),
            ("tool-call-parser", name(self.tool_call_parser.to_possible_value())),
            ("disable-chat-page", (!self.chat_page).to_string()),
        ];
        for (i, (key, value)) in rows.into_iter().chain(self.network.rows()).enumerate() {
            write!(f, "{}  {key:<24}{value}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
