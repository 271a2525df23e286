//! Bodies that name LoRA adapters.

use utoipa::ToSchema;

/// Body of `POST /v1/load_lora_adapter`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLoraAdapter {
    /// Its name as a model, without white space.
    #[schema(min_length = 1, max_length = 256)]
    pub lora_name: String,
    /// Its folder, from `--lora-root` on or absolute.
    pub lora_path: String,
}

/// Body of `POST /v1/unload_lora_adapter`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnloadLoraAdapter {
    /// Its name as a model.
    #[schema(min_length = 1, max_length = 256)]
    pub lora_name: String,
    /// Ignored.
    #[schema(minimum = 0)]
    pub lora_int_id: Option<i64>,
}
