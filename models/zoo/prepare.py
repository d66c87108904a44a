"""Corpus -> documents -> one token stream in training order.

What it is:  reads the unpacked corpus folder, makes chat-formatted documents, holds some out, trains the tokenizer
             if it is not there yet, and writes the windows of the whole run in the order in which they are trained on.
Owns:        documents and their order. Same corpus, same arguments: same bytes out.
Never does:  touch a model, read wikitext (that is for perplexity only), or show a held-out document to the trainer.

    python prepare.py CORPUS OUT [--tokens 22e6] [--window 512]
"""
import argparse, glob, hashlib, json, os, random, re
import numpy as np
import sentencepiece as spm

START, END = "<|im_start|>", "<|im_end|>"
VOCAB = 4096

# ---------------------------------------------------------------------------------------------- chat form

def turn(role, text):
    return f"{START}{role}\n{text}{END}\n"

def chat(*turns):
    """chat(user, assistant, user, assistant, ...)"""
    return "".join(turn("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(turns))

# ------------------------------------------------------------------------------------------------ reading

def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()

def clean(text):
    """One spelling for quotes, dashes and spaces; text that was decoded wrongly once is repaired."""
    if "â€" in text:
        for bad, good in (("â€œ", '"'), ("â€™", "'"), ("â€˜", "'"), ("â€”", " - "), ("â€“", " - "), ("â€¦", "..."), ("â€", '"')):
            text = text.replace(bad, good)
    text = text.translate(str.maketrans("“”‘’–—\u00a0", "\"\"''-- ")).replace("…", "...").replace("\ufeff", "")
    text = re.sub(r"[ \t]+", " ", text)
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())

def key(text):
    """What two copies of one story share, whatever their case and spacing."""
    return re.sub(r"[^a-z]+", "", text.lower())[:80]

WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
NAMED = re.compile(r"\b(?:named|called) ([a-z]{3,})\b")

def learn_case(stories):
    """Share of capitals per word, counted only where no sentence begins."""
    up, all_ = {}, {}
    for s in stories:
        for m in WORD.finditer(s):
            if m.start() < 2 or s[m.start() - 1] != " " or s[m.start() - 2] in ".!?\"\n:": continue
            w = m.group().lower()
            all_[w] = all_.get(w, 0) + 1
            up[w] = up.get(w, 0) + m.group()[0].isupper()
    return {w for w, n in all_.items() if n >= 3 and up[w] > 0.6 * n}

def truecase(text, capitals):
    """Gives a lower-case story its capitals back: sentence starts, opened quotes, known names and names it introduces."""
    names = capitals | {n for n in NAMED.findall(text)}
    out, at, open_quote = [], 0, False
    begin = True
    for m in re.finditer(r"[a-z']+|[^a-z']", text):
        w = m.group()
        if w[0].isalpha():
            bare = w.split("'")[0]
            if begin or bare in names or bare == "i": w = w[0].upper() + w[1:]
            begin = False
        elif w in ".!?\n": begin = True
        elif w == '"':
            open_quote = not open_quote
            if open_quote: begin = True
            elif out and out[-1] in ".!?": begin = text[m.end():m.end() + 2].strip() == "" or out[-1] == "."
        elif w not in " -": begin = False if w not in "'" else begin
        if w == "\n": open_quote = False
        out.append(w)
    return "".join(out)

def tiny_stories(folder):
    cased = [clean(s) for s in read(folder + "/tinystories/tinystories_sample_2MB.txt").split("<|endoftext|>")][:-1]
    cased = [s for s in cased if len(s) > 200]
    capitals = learn_case(cased)
    seen = {key(s) for s in cased}
    rest = read(folder + "/tinystories/tinystories_lowercase_4.19MB.txt").replace("\n\n", "\0").split("\n")
    lower = []
    for s in rest[:-1]:
        s = clean(s.replace("\0", "\n"))
        if len(s) < 300 or key(s) in seen or not re.search(r'[.!?"]$', s): continue
        seen.add(key(s))
        lower.append(truecase(s, capitals))
    return cased, lower

def picture_books(folder):
    for path in sorted(glob.glob(folder + "/global-asp/*/*.md")):
        lines = clean(read(path)).split("\n")
        title = lines[0].lstrip("# ").strip()
        pages = [" ".join(l for l in p.split("\n") if l and not l.startswith("*")).strip()
                 for p in "\n".join(lines[1:]).split("##")]
        pages = [p for p in pages if p]
        # short pages are joined into paragraphs
        paras, cur = [], ""
        for p in pages:
            cur = (cur + " " + p).strip()
            if len(cur) > 220: paras.append(cur); cur = ""
        if cur: paras.append(cur)
        body = "\n".join(paras)
        if 300 < len(body) < 5000 and sum(ord(c) > 127 for c in body) < 0.01 * len(body):
            yield title, body

def dialogues(folder, part):
    for path in sorted(glob.glob(folder + f"/sgd-dialogues/{part}*.txt")):
        for block in read(path).split("\n\n"):
            turns = []
            for line in clean(block).split("\n"):
                if line.startswith("USER:"): role = 0
                elif line.startswith("SYSTEM:"): role = 1
                else: continue
                if len(turns) % 2 != role: break
                turns.append(line.split(":", 1)[1].strip())
            if len(turns) % 2: turns.pop()
            if len(turns) >= 4: yield chat(*turns)

def easy_books(folder, stories, n_chars):
    """Passages of the classics, the plainest ones: most words known from the stories, short sentences, some talk."""
    count = {}
    for s in stories:
        for w in WORD.findall(s.lower()): count[w] = count.get(w, 0) + 1
    known = set(sorted(count, key=lambda w: (-count[w], w))[:4000])
    passages, cur = [], ""
    for line in read(folder + "/books/children-classics.txt").split("\n"):
        line = clean(line)
        if len(cur) + len(line) > 2200 and cur: passages.append(cur); cur = ""
        cur = (cur + "\n" + line).strip()
    scored = []
    for p in passages:
        words = WORD.findall(p.lower())
        if len(words) < 200: continue
        hard = sum(w not in known for w in words) / len(words)
        sentence = len(words) / max(1, len(re.findall(r"[.!?]", p)))
        scored.append((hard + 0.004 * sentence, hashlib.md5(p.encode()).hexdigest(), p))
    scored.sort()
    out, total = [], 0
    for _, _, p in scored:
        if total > n_chars: break
        out.append(p); total += len(p)
    return out

# ----------------------------------------------------------------------------------------------- variants

GIRLS = "Lily Mia Lucy Anna Sara Emma Jane Sue Amy Molly Daisy Ella Rosie Zoe Mary Kate Nina Bella Ruby Eva".split()
BOYS = "Tim Tom Ben Sam Max Jack Timmy Tommy Billy Bob Joe Leo Fred Peter Danny Mike Johnny Charlie Finn Adam".split()
THINGS = ("cat dog bird bear rabbit bunny fish car truck train boat ball doll kite balloon princess prince king queen dragon frog mouse lion tiger "
          "elephant cow duck horse pig monkey fox wolf squirrel bee butterfly spider turtle owl robot fairy witch monster giant tree flower garden "
          "castle forest river sea beach park house school farm cake cookie apple banana pizza hat shirt dress shoe book box bike moon star sun rain "
          "snow cloud rainbow puppy kitten baby teddy ghost pirate knight farmer doctor teacher grandma brother sister picnic birthday party swing "
          "puddle toy drum guitar song treasure magic zoo lake mountain goat sheep chicken hen egg worm ant snake bug penguin whale shark crab").split()
PLAIN = ("Tell me a story.", "Tell me a short story.", "Please tell me a story.", "Can you tell me a story?", "I want to hear a story.", "Story time!",
         "Tell me a bedtime story.", "Can you tell me a short story, please?", "Write a short story.", "I would like a story, please.", "A story, please!")
ABOUT = ("Tell me a story about {}.", "Tell me a story about {}.", "Tell me a short story about {}.", "Can you tell me a story about {}?", "Write a story about {}.",
         "I want a story about {}.", "Please tell me a story about {}.", "Do you know a story about {}?", "Tell me about {}.", "A story about {}, please.",
         "tell me a story about {}", "Once upon a time there was {}. What happened?")
SYSTEM = ("You are a friendly storyteller.", "You tell short stories to children.", "You are a helpful assistant.")
NO_ARTICLE = {"rain", "snow", "magic"}

def a(word):
    if word in NO_ARTICLE: return word
    if word in ("sun", "moon", "sea", "zoo", "rain"): return "the " + word
    return ("an " if word[0] in "aeiou" else "a ") + word

def rename(story, rng):
    """Gives the children of a story other names, the same sort of name, never two the same."""
    words = set(WORD.findall(story))
    out = story
    swap = {}
    for group in (GIRLS, BOYS):
        here = [n for n in group if n in words or n + "'s" in words]
        free = [n for n in group if n not in here]
        rng.shuffle(free)
        for n in here: swap[n] = free.pop() if free else n
    if swap: out = re.sub(r"\b(" + "|".join(swap) + r")\b", lambda m: swap[m.group()], story)
    return out

def subject(story, rng, common):
    """What a story can be asked for by: a thing or a name that it speaks of often, early, and that few other stories have."""
    low = story.lower()
    best = []
    for w in THINGS:
        n = len(re.findall(rf"\b{w}s?\b", low))
        if n >= 2 or (n and low.find(w) < 150): best.append((n * common[w], w))
    best.sort(reverse=True)
    things = [w for _, w in best[:3]]
    names = [n for n in GIRLS + BOYS if len(re.findall(rf"\b{n}\b", story)) >= 2]
    r = rng.random()
    if names and (r < 0.2 or not things):
        n = names[0]
        kind = "girl" if n in GIRLS else "boy"
        form = rng.choice(("{n}", f"a {kind} named {{n}}", f"a {kind} called {{n}}"))
        s = form.format(n=n)
        if things and rng.random() < 0.4: s += " and " + a(things[0])
        return s
    if not things: return None
    if len(things) > 1 and r > 0.75: return a(things[0]) + " and " + a(things[1])
    return a(things[0] if r < 0.65 else rng.choice(things))

HELLO = (("Hello!", "Hello! Would you like to hear a story?"), ("Hi!", "Hi there! I can tell you a story. What should it be about?"),
         ("Hello", "Hello! What would you like to hear today?"), ("Hi", "Hi! How are you today?"), ("Hey", "Hey! Do you want to hear a story?"),
         ("Good morning!", "Good morning! Did you sleep well? I have a story for you."), ("Good evening!", "Good evening! It is a good time for a story."),
         ("Hello, how are you?", "I am very well, thank you! How are you?"), ("How are you?", "I am fine, thank you. How are you today?"),
         ("Who are you?", "I am a small language model. I like to tell short stories."), ("What are you?", "I am a small language model that tells stories."),
         ("What is your name?", "My name is Story. I tell little stories."), ("What can you do?", "I can tell you a short story, or help you book a table or find a film."),
         ("Can you help me?", "Of course! I can tell you a story. What should it be about?"), ("Hi, can you help me?", "Yes, of course. What would you like?"))
BYE = (("Thank you!", "You are welcome! Do you want another story?"), ("Thanks.", "You are welcome!"), ("That was a nice story.", "Thank you! I am happy that you liked it."),
       ("I liked that.", "I am glad! Would you like another one?"), ("Goodbye!", "Goodbye! Have a nice day."), ("Bye!", "Bye bye! Come back soon for another story."),
       ("Good night!", "Good night! Sleep well and have sweet dreams."), ("Thank you, that is all.", "You are welcome. Have a great day!"),
       ("No, thank you.", "All right. Have a nice day!"))
MORE = ("Another one, please.", "Tell me another story.", "One more, please!", "Another story!")

def story_chat(story, rng, common, title=None):
    """A story as somebody might ask for it; every call gives another wording, other names, sometimes a greeting or a question."""
    if title is None: story = rename(story, rng)
    what = subject(story, rng, common)
    if title and (what is None or rng.random() < 0.5):
        ask = rng.choice(('Tell me the story "{}".', 'Do you know the story "{}"?', 'Tell me the story of "{}".')).format(title)
    elif what is None or rng.random() < 0.2: ask = rng.choice(PLAIN)
    else: ask = rng.choice(ABOUT).format(what)
    if rng.random() < 0.05: ask = "Hello! " + ask
    turns = [ask, story]
    r = rng.random()
    if r < 0.07:
        turns = list(rng.choice(HELLO)) + turns
    elif r < 0.16:
        turns += list(rng.choice(BYE))
    elif r < 0.22:
        names = [(story.find(n), n) for n in GIRLS + BOYS if re.search(rf"\b{n}\b", story)]
        if names:
            n = min(names)[1]
            turns += [rng.choice(("Who was the story about?", "Who is in the story?", "Who was that about?")),
                      f"It was about a {'girl' if n in GIRLS else 'boy'} named {n}."]
    head = turn("system", rng.choice(SYSTEM)) if rng.random() < 0.06 else ""
    return head + chat(*turns)

# -------------------------------------------------------------------------------------------------- main

def train_tokenizer(texts, prefix):
    with open(prefix + ".txt", "w", encoding="utf-8") as f:
        for t in texts: f.write(t.replace(START, "").replace(END, "") + "\n")
    spm.SentencePieceTrainer.train(
        input=prefix + ".txt", model_prefix=prefix, model_type="bpe", vocab_size=VOCAB, byte_fallback=True, character_coverage=0.9995,
        user_defined_symbols=[START, END], normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        add_dummy_prefix=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, max_sentence_length=20000, num_threads=2, minloglevel=1)
    os.remove(prefix + ".txt")

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("corpus"); ap.add_argument("out")
    ap.add_argument("--tokens", type=float, default=22e6); ap.add_argument("--window", type=int, default=512)
    ap.add_argument("--book-mb", type=float, default=20)
    o = ap.parse_args()
    os.makedirs(o.out, exist_ok=True)
    rng = random.Random(1)

    cased, lower = tiny_stories(o.corpus)
    rng.shuffle(cased)
    # held out: only stories whose capitals are the author's own
    held_stories, cased = cased[:230], cased[230:]
    tiny = cased + lower
    books_p = list(picture_books(o.corpus)); rng.shuffle(books_p)
    talk = [d for part in ("train", "dev") for d in dialogues(o.corpus, part)]
    held_talk = list(dialogues(o.corpus, "test")); rng.shuffle(held_talk); held_talk = held_talk[:200]
    books = easy_books(o.corpus, tiny, o.book_mb * 1e6); rng.shuffle(books)
    held_books, books = books[:90], books[90:]

    n_stories = len(tiny)
    common = {}
    for w in THINGS:
        df = sum(bool(re.search(rf"\b{w}\b", s.lower())) for s in tiny[::3]) + 1
        common[w] = float(np.log(1 + n_stories / 3 / df))

    model = o.out + "/tokenizer"
    if not os.path.exists(model + ".model"):
        train_tokenizer(tiny + [b for _, b in books_p] + talk[:6000] + books[:1500], model)
    sp = spm.SentencePieceProcessor(model_file=model + ".model")
    enc = lambda t: np.array(sp.encode(t), np.uint16)

    # Held-out text, as token files with one document after the other, and as plain text for perplexity runs.
    held = {"stories": [story_chat(s, rng, common) for s in held_stories], "dialogues": held_talk, "books": held_books}
    for name, docs in held.items(): np.save(f"{o.out}/held-{name}.npy", np.concatenate([enc(d) for d in docs]))
    with open(o.out + "/heldout-stories.txt", "w") as f: f.write("\n\n".join(held_stories) + "\n")

    # Sources are dealt like cards: each is walked in shuffled order, over and over; a new pass rewords the stories.
    def endless(docs, make):
        order = list(range(len(docs)))
        while True:
            rng.shuffle(order)
            for i in order: yield make(docs[i])
    source = {
        "tiny": endless(tiny, lambda s: enc(story_chat(s, rng, common))),
        "picture": endless(books_p, lambda tb: enc(story_chat(tb[1], rng, common, tb[0]))),
        "talk": endless(talk, enc),
        "books": endless(books, enc),
        "greet": endless(range(len(HELLO) * 4), lambda i: enc(chat(*(list(HELLO[i % len(HELLO)]) + (list(rng.choice(BYE)) if rng.random() < 0.4 else []))))),
    }
    # Share of windows begun by each source, at the start and at the end of the run; between them a straight line.
    shares = {"tiny": (0.30, 0.55), "picture": (0.08, 0.06), "talk": (0.22, 0.22), "books": (0.39, 0.14), "greet": (0.01, 0.03)}
    names = list(shares)
    W = o.window + 1
    n_win = int(o.tokens / o.window)
    out = np.zeros((n_win, W), np.uint16)
    used = dict.fromkeys(names, 0)
    tail = {"books": None, "talk": None, "picture": None}
    for k in range(n_win):
        t = k / n_win
        at, name = 0, None
        while at < W:
            # a window starts with a document; it is filled with documents of the same kind, the last one is cut
            if at == 0 or name == "greet":
                name = rng.choices(names, [s + (e - s) * t for s, e in (shares[n] for n in names)])[0]
            if at == 0 and tail.get(name) is not None and len(tail[name]) > 100: d = tail[name]; tail[name] = None
            else: d = next(source[name])
            n = min(len(d), W - at)
            out[k, at:at + n] = d[:n]
            if n < len(d) and name in tail: tail[name] = d[n:]
            at += n; used[name] += n
    np.save(o.out + "/train.npy", out)
    info = {"windows": n_win, "window": o.window, "tokens": used, "documents": {"tinystories cased": len(cased), "tinystories recased": len(lower),
            "picture books": len(books_p), "dialogues": len(talk), "book passages": len(books)},
            "one pass in tokens": {"tiny": int(sum(map(len, tiny)) / 4), "talk": int(sum(map(len, talk)) / 4), "books": int(sum(map(len, books)) / 4)}}
    json.dump(info, open(o.out + "/data.json", "w"), indent=1)
    print(json.dumps(info, indent=1))

if __name__ == "__main__":
    main()
