() => {
  document.documentElement.lang = "en";
  // What happens is said to those who do not see it.
  for (const region of document.querySelectorAll(".sa-status")) {
    region.setAttribute("role", "status");
    region.setAttribute("aria-live", "polite");
  }
}
