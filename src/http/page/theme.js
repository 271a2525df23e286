// Before the first paint, and so not a module: the colours the reader chose, if any.
try {
  const chosen = localStorage.getItem('lima.theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is off: the system's colours.
}
