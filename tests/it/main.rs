mod text;
mod text_stop;
