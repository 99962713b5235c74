() => {
  document.documentElement.lang = "en";
  // Screen readers announce what happens.
  for (const region of document.querySelectorAll(".sa-status")) {
    region.setAttribute("role", "status");
    region.setAttribute("aria-live", "polite");
  }
}
