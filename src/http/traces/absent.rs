//! A build without OpenTelemetry: types of which there is no value.

use std::future::Future;
use std::time::Duration;

use super::{Generated, Remote};
use crate::engine::SamplingParams;

/// Where spans go: nowhere.
#[derive(Clone, Debug)]
pub enum Traces {}

/// The span of a request: there is none.
#[derive(Clone, Debug)]
pub enum RequestSpan {}

#[allow(missing_docs)]
impl Traces {
    /// # Errors
    /// Always.
    pub fn new(_: &str) -> Result<Self, String> {
        Err("this build has no OpenTelemetry; build it with --features otlp, or use the images".into())
    }

    pub(in crate::http) fn begin(&self, _: &str, _: &str, _: Option<&Remote>) -> Option<RequestSpan> {
        match *self {}
    }

    /// # Errors
    /// Never.
    pub fn flush(&self) -> Result<(), String> {
        match *self {}
    }

    pub fn shutdown(&self, _: Duration) {
        match *self {}
    }
}

#[allow(missing_docs)]
impl RequestSpan {
    pub fn current() -> Option<Self> {
        None
    }

    pub async fn scope<T>(_: Option<Self>, handling: impl Future<Output = T>) -> T {
        handling.await
    }

    pub fn sync_scope<T>(_: Option<Self>, work: impl FnOnce() -> T) -> T {
        work()
    }

    pub fn ids(&self) -> (String, String) {
        match *self {}
    }

    pub fn label(&self, _: &'static str, _: &str) {
        match *self {}
    }

    pub fn model(&self, _: &str) {
        match *self {}
    }

    pub fn response(&self, _: &str) {
        match *self {}
    }

    pub fn asked(&self, _: &SamplingParams, _: usize) {
        match *self {}
    }

    pub fn generated(&self, _: Generated<'_>) {
        match *self {}
    }

    pub fn responded(&self, _: u16) {
        match *self {}
    }

    pub fn failed(&self, _: &'static str, _: bool) {
        match *self {}
    }
}
