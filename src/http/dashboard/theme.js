// Sets the chosen theme before anything is drawn. No module: it must not wait for any.
try {
  const chosen = localStorage.getItem('theme');
  if (chosen === 'dark' || chosen === 'light') document.documentElement.dataset.theme = chosen;
} catch {
  // No storage: the system's theme.
}
