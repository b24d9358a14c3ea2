import sys, torch, math
torch.set_num_threads(1)
from pccl.demo.corpus import default_root, load_corpus
from pccl.demo.inner import InnerTraining
from pccl.demo.peer_config import ModelShape
from pccl.diloco.outer import Nesterov, mix
from pccl.diloco.parameters import FlatParameters, local_sizes
from pccl.diloco.layers import strided_fragments, Schedule
SHAPE=ModelShape(layers=4,width=64,heads=4,context=64)
def run(method, eta, mu, H, steps, seed=1, alpha=.5, tau=2, F=4):
    P=4
    ts=[InnerTraining(SHAPE, load_corpus(default_root(),shard=p,shards=P), rows=8, seed=seed, shard=p, shards=P, steps=steps) for p in range(P)]
    names=strided_fragments(local_sizes(ts[0].model),F) if method=='streaming' else None
    fps=[FlatParameters(t.model,names) for t in ts]
    S=len(fps[0]); th=[fps[0].read(s) for s in range(S)]; m=[torch.zeros_like(x) for x in th]
    N=Nesterov(eta,mu); begin=[th[0]]*P; ahead=[torch.zeros_like(th[0])]*P; pend=None
    sch=Schedule(H*F if False else H,F,tau) if method=='streaming' else None
    fl=None
    for t in range(1,steps+1):
        for tr in ts: tr.backward(t-1); tr.update(t-1)
        if method=='diloco' and t%H==0:
            d=sum(th[0]-f.read(0) for f in fps)/P
            th[0],m[0]=N.update(th[0],m[0],d)
            for f in fps: f.write(0,th[0])
        if method=='async' and t%H==0:
            own=[b-f.read(0) for b,f in zip(begin,fps)]
            if pend is not None: th[0],m[0]=N.update(th[0],m[0],pend)
            pend=sum(own)/P
            for p,f in enumerate(fps):
                begin[p],ahead[p]=N.update(th[0],ahead[p],own[p]/P); f.write(0,begin[p])
        if method=='streaming':
            if fl and t==fl[1]:
                s,_,d=fl; fl=None
                th[s],m[s]=N.update(th[s],m[s],d)
                for f in fps: f.write(s,mix(f.read(s),th[s],alpha))
            s=sch.starts_at(t)
            if s is not None: fl=(s,t+tau,sum(th[s]-f.read(s) for f in fps)/P)
    if pend is not None: th[0],m[0]=N.update(th[0],m[0],pend)
    for s in range(S): fps[0].write(s,th[s])
    return ts[0].evaluate()
for a in sys.argv[2:]:
    me,eta,mu,H=a.split(':'); print(a, round(run(me,float(eta),float(mu),int(H),int(sys.argv[1])),3), flush=True)
