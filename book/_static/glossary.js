// Words of the glossary: their meaning beside them, by mouse, keyboard or touch. Without this they are links.
document.addEventListener('DOMContentLoaded', () => {
  const words = document.querySelectorAll('a[data-meaning]');
  if (!words.length) return;
  const note = document.createElement('div');
  Object.assign(note, { id: 'vla-note', className: 'vla-note', hidden: true });
  note.setAttribute('role', 'tooltip');
  document.body.append(note);
  let shown = null, soon = 0;

  const hide = () => {
    clearTimeout(soon);
    shown?.removeAttribute('aria-describedby');
    shown = null;
    note.hidden = true;
  };
  const show = word => {
    clearTimeout(soon);
    if (word === shown) return;
    hide();
    shown = word;
    note.textContent = word.dataset.meaning;
    note.hidden = false;
    word.setAttribute('aria-describedby', note.id);
    const at = word.getClientRects()[0], size = note.getBoundingClientRect(), edge = 8;
    const left = Math.max(edge, Math.min(at.left, document.documentElement.clientWidth - size.width - edge));
    const below = at.bottom + size.height + edge < innerHeight;
    note.style.left = `${left + scrollX}px`;
    note.style.top = `${(below ? at.bottom + 4 : at.top - size.height - 4) + scrollY}px`;
  };
  const later = action => { clearTimeout(soon); soon = setTimeout(action, 250); };

  for (const word of words) {
    word.addEventListener('pointerenter', event => event.pointerType === 'mouse' && later(() => show(word)));
    word.addEventListener('pointerleave', event => event.pointerType === 'mouse' && later(hide));
    word.addEventListener('focus', () => word.matches(':focus-visible') && show(word));
    word.addEventListener('blur', hide);
    // A finger has no hover: the first tap shows the note, a second one follows the link.
    word.addEventListener('pointerdown', event => { word.touched = event.pointerType !== 'mouse' && word !== shown; });
    word.addEventListener('click', event => {
      if (!word.touched) return;
      event.preventDefault();
      show(word);
    });
  }
  note.addEventListener('pointerenter', () => clearTimeout(soon)); // the pointer may go into the note, to read or copy
  note.addEventListener('pointerleave', () => later(hide));
  document.addEventListener('keydown', event => event.key === 'Escape' && hide());
  document.addEventListener('pointerdown', event => shown && !shown.contains(event.target) && !note.contains(event.target) && hide());
});
