
mod sampler;
