// Tabs by the pattern of WAI-ARIA: arrows, Home and End move; a link or a search into a hidden panel opens it; all is printed.
(() => {
  const reveal = target => {
    for (let fold = target; fold; fold = fold.parentElement) if (fold.matches("details")) fold.open = true;
    const inside = target.querySelector(":scope > details.fold");
    if (inside) inside.open = true;
  };
  addEventListener("beforeprint", () => document.querySelectorAll("details.fold").forEach(fold => (fold.open = true)));
  const list = document.querySelector('[role="tablist"]');
  const tabs = list ? [...list.querySelectorAll('[role="tab"]')] : [];
  const panel = tab => document.getElementById(tab.getAttribute("aria-controls"));
  const select = chosen => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      if (tab === chosen) panel(tab).removeAttribute("hidden");
      else panel(tab).setAttribute("hidden", "until-found");
    }
  };
  const follow = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const owner = tabs.find(tab => panel(tab).contains(target));
    if (owner) select(owner);
    reveal(target);
    target.scrollIntoView();
  };
  if (list) {
    list.hidden = false;
    list.parentElement.classList.add("tabbed");
    select(tabs[0]);
    list.addEventListener("click", event => {
      const tab = event.target.closest('[role="tab"]');
      if (tab) select(tab);
    });
    list.addEventListener("keydown", event => {
      const at = tabs.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      const tab = tabs[(to + tabs.length) % tabs.length];
      select(tab);
      tab.focus();
    });
    for (const tab of tabs) panel(tab).addEventListener("beforematch", () => select(tab));
  }
  addEventListener("hashchange", follow);
  follow();
})();
