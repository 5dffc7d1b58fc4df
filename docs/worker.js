// Browsers let no page opened from disk start a worker, and the search is one: run it in an empty frame of the page instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.waiting = [];
      this.frame = document.body.appendChild(document.createElement("iframe"));
      this.frame.hidden = true;
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      const script = inside.document.createElement("script");
      script.src = new URL(address, location.href);
      script.onload = () => this.deliver();
      script.onerror = (error) => this.onerror?.(error);
      inside.document.body.append(script);
    }
    postMessage(data) {
      this.waiting.push(data);
      if (this.ready) this.deliver();
    }
    deliver() {
      this.ready = true;
      const inside = this.frame.contentWindow;
      for (const data of this.waiting.splice(0)) setTimeout(() => inside?.onmessage({ data: inside.structuredClone(data) }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
