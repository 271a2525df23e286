// What the browser keeps for this page; where it keeps nothing, what the page remembers itself.

class Area {
  #kept = null;
  #memory = new Map();

  constructor(name) {
    try {
      // The access alone may be forbidden.
      this.#kept = window[name];
    } catch {
      // Storage is off.
    }
  }

  get(name) {
    return this.#memory.get(name) ?? this.#kept?.getItem(name) ?? null;
  }

  /** False if it is only remembered until the page is closed: storage is full or off. */
  set(name, value) {
    try {
      this.#kept.setItem(name, value);
      this.#memory.delete(name);
      return true;
    } catch {
      this.#memory.set(name, value);
      return false;
    }
  }

  remove(name) {
    this.#memory.delete(name);
    this.#kept?.removeItem(name);
  }

  names() {
    return [...new Set([...this.#memory.keys(), ...Object.keys(this.#kept ?? {})])];
  }
}

/** For good. */
export const local = new Area('localStorage');
/** Until the tab is closed. */
export const session = new Area('sessionStorage');
